package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/lacunafs/lacuna/internal/sys"
)

// coldSequential reads all of the file through an empty cache, beside curl.
func coldSequential(b *bench) error {
	var ours, curl []time.Duration
	for n := range b.rounds {
		root := b.path(fmt.Sprintf("root-%d", n))
		i, err := b.attach("big", root)
		if err != nil {
			return err
		}
		took, err := readAll(i.file)
		if err := errors.Join(err, i.close(), os.RemoveAll(root)); err != nil {
			return err
		}
		ours = append(ours, took)
		syscall.Sync()
		took, err = timed("curl", "-s", "-o", b.path("curled"), b.base+"big")
		if err := errors.Join(err, os.Remove(b.path("curled"))); err != nil {
			return err
		}
		curl = append(curl, took)
		syscall.Sync()
	}
	o, c := median(ours), median(curl)
	row("cold sequential read, beside curl to the same disk", rate(b.size, o), rate(b.size, c), ratio(o, c), "at most 1.20")
	return nil
}

// completeObject reads an object that is all there, attached anew, beside a plain file.
func completeObject(b *bench) error {
	root := b.path("root-complete")
	i, err := b.attach("big", root)
	if err != nil {
		return err
	}
	plain := b.path("plain")
	_, err = timed("cp", b.path("www/big"), plain)
	_, e := readAll(i.file)
	if err := errors.Join(err, e, i.close()); err != nil {
		return err
	}
	if i, err = b.attach("big", root); err != nil {
		return err
	}
	for _, cold := range []bool{false, true} {
		var ours, theirs []time.Duration
		for range b.rounds + 2 {
			for _, side := range []struct {
				path string
				into *[]time.Duration
			}{{i.file, &ours}, {plain, &theirs}} {
				if cold {
					if err := dropCaches(); err != nil {
						return errors.Join(err, i.close())
					}
				}
				took, err := readAll(side.path)
				if err != nil {
					return errors.Join(err, i.close())
				}
				*side.into = append(*side.into, took)
			}
		}
		name := "complete object, warm page cache, beside a plain file"
		if cold {
			name = "complete object, cold page cache, beside a plain file"
		}
		o, p := median(ours), median(theirs)
		row(name, rate(b.size, o), rate(b.size, p), ratio(p, o)+" of its throughput", "at least 0.95")
	}
	return errors.Join(i.close(), os.Remove(plain), os.RemoveAll(root))
}

// preads reads n bytes at each offset and returns how long each read took.
func preads(path string, n int, offs []int64) (took []time.Duration, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, n)
	for _, off := range offs {
		start := time.Now()
		if _, err := f.ReadAt(buf, off); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

// places are n random block offsets of a file of size bytes, no two in one
// stretch of apart bytes.
func places(seed uint64, n int, size, apart int64) []int64 {
	rng := rand.New(rand.NewPCG(seed, 1))
	stretches := rng.Perm(int(size / apart))
	var out []int64
	for _, s := range stretches[:min(n, len(stretches))] {
		out = append(out, int64(s)*apart)
	}
	return out
}

// uncached is preads after the file's own page cache was emptied, so that each
// read of another page asks the object.
func uncached(path string, n int, offs []int64) (took []time.Duration, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = sys.Uncache(int(f.Fd()))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return preads(path, n, offs)
}

// presentEvent reads a range that is present, of an object that is not complete,
// and the same when it is: then no event is raised.
func presentEvent(b *bench) error {
	root := b.path("root-event")
	i, err := b.attach("big", root)
	if err != nil {
		return err
	}
	// Every second page behind the first, in no order: the kernel reads none ahead.
	const present = 64 << 20
	offs := places(4, present/8192, present, 8192)
	offs = slices.DeleteFunc(offs, func(off int64) bool { return off == 0 })
	_, err = preads(i.file, present, []int64{0})
	before, e := i.hits()
	err = errors.Join(err, e)
	event, e := uncached(i.file, 4096, offs)
	after, e2 := i.hits()
	err = errors.Join(err, e, e2)
	if err == nil && after-before < uint64(len(offs)) {
		err = fmt.Errorf("%d reads raised %d events", len(offs), after-before)
	}
	if err == nil {
		_, err = readAll(i.file)
	}
	complete, e := uncached(i.file, 4096, offs)
	plain, e2 := preads(b.path("www/big"), 4096, offs)
	if err := errors.Join(err, e, e2, i.close(), os.RemoveAll(root)); err != nil {
		return err
	}
	o, c, p := median(event), median(complete), median(plain)
	row("4 KiB read of a present range of an incomplete object, which raises an event: p50, beside a plain file", us(o), us(p), us(o-p)+" more", "under 50 µs")
	row("the same, beside a complete object", us(o), us(c), us(o-c)+" more", "")
	return nil
}

// missLatency reads 4 KiB at random, cold, beside the same request made directly.
func missLatency(b *bench) error {
	root := b.path("root-miss")
	i, err := b.attach("big", root)
	if err != nil {
		return err
	}
	offs := places(1, 2000, b.size, 256<<10)
	half := len(offs) / 2
	misses, err := preads(i.file, 4096, offs[:half])
	direct, e := gets(b.base+"big", 16<<10, offs[half:])
	if err := errors.Join(err, e, i.close(), os.RemoveAll(root)); err != nil {
		return err
	}
	o, d := median(misses), median(direct)
	p99 := func(t []time.Duration) time.Duration { return t[len(t)*99/100] }
	row("4 KiB miss: p50, beside a keep-alive GET of the 16 KiB that it fetches", us(o), us(d), us(o-d)+" more", "within 150 µs")
	row("4 KiB miss: p99", us(p99(misses)), us(p99(direct)), us(p99(misses)-p99(direct))+" more", "")
	return nil
}

// gets asks for n bytes at each offset over one connection.
func gets(url string, n int64, offs []int64) (took []time.Duration, err error) {
	client := &http.Client{}
	defer client.CloseIdleConnections()
	for _, off := range offs {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
		start := time.Now()
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		took = append(took, time.Since(start))
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// residentMemory streams 4 GiB through a worker, and then the same with curl: how
// fast the machine takes so much at once differs more between runs than they do.
func residentMemory(b *bench) error {
	const size = 4 << 30
	f, err := os.Create(b.path("www/huge"))
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	root := b.path("root-memory")
	i, err := b.attach("huge", root)
	if err != nil {
		return err
	}
	pid, err := i.worker()
	_, e3 := readAll(b.path("www/huge")) // so that the server has it in memory for both
	took, e := readAll(i.file)
	high, e2 := highWater(pid)
	err = errors.Join(err, e, e2, e3, i.close(), os.RemoveAll(root))
	if err != nil {
		return err
	}
	syscall.Sync()
	_, err = readAll(b.path("www/huge"))
	if err != nil {
		return err
	}
	curl, err := timed("curl", "-s", "-o", b.path("curled"), b.base+"huge")
	if err := errors.Join(err, os.Remove(b.path("curled")), os.Remove(b.path("www/huge"))); err != nil {
		return err
	}
	row("most resident memory of the worker, 4 GiB streamed", fmt.Sprintf("%.1f MiB", float64(high)/(1<<20)), "", "", "under 60 MiB")
	row("the same, beside curl to the same disk", rate(size, took), rate(size, curl), ratio(took, curl), "at most 1.00")
	return nil
}

// rcloneMount shows the server's files through rclone.
func (b *bench) rcloneMount(n int) (point string, unmount func() error, err error) {
	point, cache := b.path(fmt.Sprintf("rclone-%d", n)), b.path(fmt.Sprintf("rclone-cache-%d", n))
	if err := errors.Join(os.Mkdir(point, 0o755), os.Mkdir(cache, 0o755)); err != nil {
		return "", nil, err
	}
	cmd := exec.Command("rclone", "mount", ":http:", point, "--http-url", b.base,
		"--vfs-cache-mode", "full", "--cache-dir", cache, "--config", "/dev/null", "--read-only",
		"--log-file", b.path("rclone.log"))
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	unmount = func() error {
		_, err := timed("fusermount3", "-u", point) // which ends rclone
		return errors.Join(err, cmd.Wait(), os.Remove(point), os.RemoveAll(cache))
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if st, err := os.Stat(point + "/big"); err == nil && st.Size() == b.size {
			return point, unmount, nil
		}
		<-time.After(20 * time.Millisecond)
	}
	return "", nil, errors.Join(errors.New("rclone does not show the file"), unmount())
}

// besideRclone measures both by turns: all of the file, then 4 KiB at random,
// cold and once more warm.
func besideRclone(b *bench) error {
	names := [3]string{"cold sequential read", "4 KiB at random, cold: p50", "4 KiB at random, warm: p50"}
	var ours, theirs [3][]time.Duration
	for n := range b.rounds {
		root := b.path(fmt.Sprintf("root-rclone-%d", n))
		i, err := b.attach("big", root)
		if err != nil {
			return err
		}
		err = threeWays(i.file, &ours, 0)
		if err := errors.Join(err, i.close(), os.RemoveAll(root)); err != nil {
			return err
		}
		if i, err = b.attach("big", root); err != nil {
			return err
		}
		err = threeWays(i.file, &ours, 1)
		if err := errors.Join(err, i.close(), os.RemoveAll(root)); err != nil {
			return err
		}
		for _, what := range []int{0, 1} {
			point, unmount, err := b.rcloneMount(2*n + what)
			if err != nil {
				return err
			}
			if err := errors.Join(threeWays(point+"/big", &theirs, what), unmount()); err != nil {
				return err
			}
		}
	}
	for k, name := range names {
		o, r := median(ours[k]), median(theirs[k])
		if k == 0 {
			row(name+", beside rclone mount --vfs-cache-mode full", rate(b.size, o), rate(b.size, r), ratio(o, r), "")
			continue
		}
		row(name+", beside rclone", us(o), us(r), ratio(o, r), "")
	}
	return nil
}

// threeWays reads sequentially (0), or at random, cold and then warm (1).
func threeWays(path string, into *[3][]time.Duration, what int) error {
	if what == 0 {
		took, err := readAll(path)
		into[0] = append(into[0], took)
		return err
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	offs := places(3, 300, st.Size(), 1<<20)
	for k := 1; k <= 2; k++ {
		took, err := preads(path, 4096, offs)
		if err != nil {
			return err
		}
		into[k] = append(into[k], median(took))
	}
	return nil
}
