package image

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/toc/soci"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
	"github.com/lacunafs/lacuna/test/instance"
)

// stormTars are layers of files of all sizes that do not compress.
func stormTars(t testing.TB, megabytes int) [][]byte {
	var tars [][]byte
	for l := range 2 {
		var members []member
		for n, left := 0, megabytes<<19; left > 0; n++ {
			size := min([]int{100, 4096, 70_000, 300_001, 1 << 20, 2<<20 + 5}[n%6], left)
			left -= size
			members = append(members, file(fmt.Sprintf("layer%d/file%04d", l, n), string(toctest.Random(uint64(l*10_000+n), size))))
		}
		tars = append(tars, tarOf(t, members...))
	}
	return tars
}

// stormed is a mounted image under readers, whose registry is slow.
type stormed struct {
	*mounted
	faulty *faulty
	ref    string
	dir    string
	tree   *node
	files  []readable
}

// newStormed mounts megabytes of files; rate is the registry's for each request.
func newStormed(t *testing.T, f format, megabytes int, rate int64, config string) *stormed {
	t.Helper()
	s := &stormed{}
	image := f.packAll(t, stormTars(t, megabytes)...)
	if megabytes > 100 { // or half of what is sent would be the index
		image.span = soci.DefaultSpanSize
	}
	slow, r := newFaulty(t)
	ref := image.push(t, r)
	slow.set(func() { slow.rate = rate })
	s.faulty, s.tree = slow, image.tree(t)
	s.files = filesOf(s.tree)
	s.mounted = start(t, config)
	s.ref = ref
	s.dir = s.mount(ref, "mnt")
	return s
}

// stormConfig gives the readers of large spans more time: a worker that dies forgets how
// far it has come with one.
func stormConfig(f format) string {
	if f.soci > 0 {
		return "deadline = \"5m\"\n"
	}
	return ""
}

// missing is how many bytes of the mounted image are not there.
func (s *stormed) missing() (n int64) {
	s.t.Helper()
	for _, m := range s.Status().Mounted {
		for _, l := range m.Layers {
			n += l.Size - l.Present
		}
	}
	return n
}

// brings waits until the worker has brought something, if anything is missing.
func (s *stormed) brings() {
	s.t.Helper()
	before := s.missing()
	instance.Eventually(s.t, time.Minute, func() error {
		if now := s.missing(); now > 0 && now >= before {
			return fmt.Errorf("%d bytes are missing, as before", now)
		}
		return nil
	})
}

func TestManyReadersOfEveryFormat(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			s := newStormed(t, f, 8, 0, "")
			sum := startReaders(t, order{Dir: s.dir, Files: s.files, Readers: 64, Seed: 1, Each: true}).wait(2 * time.Minute)
			sum.wantRight(t)
			compare(t, s.dir, s.tree)
			s.umount(s.dir)
		})
	}
}

func TestWorkersAreKilledUnderReaders(t *testing.T) {
	rng := instance.Rand(t)
	for _, name := range stormFormats {
		f := formatOf(name)
		t.Run(f.name, func(t *testing.T) {
			s := newStormed(t, f, 8*workerKills, 4<<20, stormConfig(f))
			r := startReaders(t, order{Dir: s.dir, Files: s.files, Readers: 16, Seed: rng.Uint64()})
			in := 0
			for range workerKills {
				instance.Pause(time.Duration(rng.IntN(150)) * time.Millisecond)
				if s.missing() > 0 {
					in++
				}
				worker := s.WaitWorker(0)
				s.Kill(worker)
				s.WaitWorker(worker)
				// A worker forgets what it fetched last. Where none lives long enough to
				// bring anything, readers fail after their deadline, as they should.
				if rng.IntN(4) > 0 {
					s.WaitReady()
					s.brings()
				}
			}
			sum := r.finish(2 * time.Minute)
			sum.wantRight(t)
			t.Logf("%d kills, %d of them while data was missing", workerKills, in)
			s.faulty.set(func() { s.faulty.rate = 0 })
			compare(t, s.dir, s.tree)
			s.umount(s.dir)
		})
	}
}

func TestUpgradesUnderReaders(t *testing.T) {
	for _, name := range upgradeFormats {
		t.Run(name, func(t *testing.T) { upgradesUnderReaders(t, formatOf(name)) })
	}
}

func upgradesUnderReaders(t *testing.T, f format) {
	rng := instance.Rand(t)
	s := newStormed(t, f, 8*upgrades, 4<<20, stormConfig(f))
	r := startReaders(t, order{Dir: s.dir, Files: s.files, Readers: 16, Seed: rng.Uint64()})
	in := 0
	for range upgrades {
		instance.Pause(time.Duration(rng.IntN(150)) * time.Millisecond)
		if s.missing() > 0 {
			in++
		}
		before := s.Status()
		s.Signal(syscall.SIGHUP)
		instance.Eventually(t, 30*time.Second, func() error {
			now, err := s.TryStatus()
			if err == nil && now.WorkerPID == before.WorkerPID {
				err = fmt.Errorf("worker %d is still there", now.WorkerPID)
			}
			return err
		})
	}
	sum := r.finish(2 * time.Minute)
	sum.wantRight(t)
	t.Logf("%d upgrades, %d of them while data was missing", upgrades, in)
	s.faulty.set(func() { s.faulty.rate = 0 })
	compare(t, s.dir, s.tree)
	s.umount(s.dir)
}

// All processes die at one blow; the next start finds the mount and serves it, or
// takes it away where nobody uses it.
func TestBothProcessesAreKilled(t *testing.T) {
	s := newStormed(t, formatOf("estargz"), 16, 0, "")
	status := s.Status()
	s.Kill(status.KeeperPID, status.WorkerPID)
	<-s.Ended
	s.StartDaemon()
	if points := instance.MountsBelow(s.dir); len(points) > 0 {
		t.Errorf("nobody used it, and it is still mounted: %v", points)
	}
	dir := s.mount(s.ref, "again")
	compare(t, dir, s.tree)
	s.umount(dir)
}

func TestSourceFaultsNeverGiveWrongBytes(t *testing.T) {
	for _, f := range formats {
		if f.soci != 2 && !slices.Contains(faultFormats, f.name) {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			image := f.packAll(t, stormTars(t, 16)...)
			bad, r := newFaulty(t)
			ref := image.push(t, r)
			tree := image.tree(t)
			rng := instance.Rand(t)
			faults := func(from ...fault) {
				bad.set(func() {
					bad.every = nil
					for range 1000 {
						bad.every = append(bad.every, from[rng.IntN(len(from))])
					}
				})
			}
			faults(right, right, short, whole, reset, busy)
			m := start(t, "")
			out, err := m.Try("mount", ref, m.Dir+"/mnt")
			for n := 0; err != nil && n < 20; n++ {
				t.Logf("mount: %v", strings.TrimSpace(err.Error()))
				m.wantNothing(m.Dir + "/mnt")
				out, err = m.Try("mount", ref, m.Dir+"/mnt")
			}
			if err != nil {
				t.Fatalf("never mounted: %s %v", out, err)
			}
			faults(right, right, short, whole, reset, shift, busy)
			sum := readOnce(t, m.Dir+"/mnt", filesOf(tree), 8)
			if sum.Wrong+sum.Other > 0 {
				t.Errorf("%s: %q", sum.String(), sum.Examples)
			}
			bad.set(func() { bad.every = nil })
			off := time.Now()
			// What failed after a long wait is answered with the same error for a
			// second (internal/ondemand, again.go).
			for sum.EIO = 1; sum.EIO > 0; {
				sum = readOnce(t, m.Dir+"/mnt", filesOf(tree), 1)
				if sum.Wrong+sum.Other > 0 || time.Since(off) > time.Minute {
					t.Fatalf("%s: %q", sum.String(), sum.Examples)
				}
			}
			compare(t, m.Dir+"/mnt", tree)
			m.umount(m.Dir + "/mnt")
		})
	}
}

// A registry without ranges gives the same image: its layers are downloaded.
func TestRegistryWithoutRanges(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			image := f.packAll(t, smallTars(t, f)...)
			plain, r := newFaulty(t)
			ref := image.push(t, r)
			plain.set(func() { plain.every = []fault{whole} })
			// The blob as a tar has what its table of contents would have lost.
			image.format.loss = loss{}
			start(t, "").wantSame(ref, image.tree(t))
		})
	}
}

func TestRegistryGoesAndComesBack(t *testing.T) {
	const deadline = 500 * time.Millisecond
	s := newStormed(t, formatOf("estargz"), 16, 0, fmt.Sprintf("deadline = %q\nstall = \"200ms\"\n", deadline))
	half := s.files[:len(s.files)/2]
	sum := readOnce(t, s.dir, half, 4)
	sum.wantRight(t)
	s.faulty.set(func() { s.faulty.down = true })
	sum = readOnce(t, s.dir, half, 4)
	sum.wantRight(t)
	sum = readOnce(t, s.dir, s.files, 16)
	if sum.Wrong+sum.Other > 0 || sum.EIO == 0 || sum.Slowest > 4*deadline {
		t.Errorf("%s: %q", sum.String(), sum.Examples)
	}
	s.faulty.set(func() { s.faulty.down = false })
	instance.Eventually(t, 30*time.Second, func() error {
		if sum := readOnce(t, s.dir, s.files, 16); sum.EIO+sum.Other > 0 {
			return fmt.Errorf("%s", sum.String())
		}
		return nil
	})
	compare(t, s.dir, s.tree)
	s.umount(s.dir)
}
