package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// Many small layers, of gzip as all that is indexed.
const (
	smallLayers    = 64
	smallLayerSize = 4 << 20
)

// indexing compares making the index of an image in an OCI layout with SOCI's builder,
// the code of soci create: span size and layers are the same, and both write zTOCs and
// an index to the disk. Lacuna verifies the layers' digests besides.
func indexing(b *bench) error {
	for _, img := range []struct {
		name, what string
		layers     int
		write      func(w *tar.Writer, layer int) error
	}{
		{"four", "4 layers", largeLayers, largeLayer},
		{"one", "one layer", 1, func(w *tar.Writer, _ int) error {
			for n := range largeLayers {
				if err := largeLayer(w, n); err != nil {
					return err
				}
			}
			return nil
		}},
		{"small", "64 layers", smallLayers, smallLayer},
		{"many", "one layer of 120,000 files", 1, manyLayer},
	} {
		at, size, err := b.gzipLayout("index-"+img.name, img.layers, img.write)
		if err != nil {
			return fmt.Errorf("build image %s: %w", img.name, err)
		}
		var ours, theirs []effort
		for n := range b.rounds {
			o, err := b.indexByLacuna(at, n)
			if err != nil {
				return err
			}
			s, err := b.indexBySOCI(at, n)
			if err != nil {
				return err
			}
			ours, theirs = append(ours, o), append(theirs, s)
		}
		o, s := medianEffort(ours), medianEffort(theirs)
		row(fmt.Sprintf("index of %d MB in %s, beside soci create", size/1e6, img.what), rate(size, o.Wall), rate(size, s.Wall), ratio(o.Wall, s.Wall), "at most 1.00")
		row("processors for it", ms(o.CPU), ms(s.CPU), ratio(o.CPU, s.CPU), "")
		row("most resident memory for it", mib(o.RSS), mib(s.RSS), fmt.Sprintf("%.2f", float64(o.RSS)/float64(s.RSS)), "at most 1.00")
	}
	return nil
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// smallLayer is one of many.
func smallLayer(w *tar.Writer, layer int) error {
	rng := rand.New(rand.NewPCG(uint64(layer), 13))
	for n, left := 0, int64(smallLayerSize); left > 0; n++ {
		size := min(int64(math.Exp(rng.NormFloat64()*1.7+8.7)), left)
		left -= size
		if err := addFile(w, fmt.Sprintf("small%d/file%d", layer, n), size, rng); err != nil {
			return err
		}
	}
	return nil
}

// gzipLayout makes an OCI layout of an image of gzip layers, unless it was kept.
func (b *bench) gzipLayout(name string, layers int, write func(*tar.Writer, int) error) (dir string, size int64, err error) {
	dir = b.path(name)
	if b.keep != "" {
		dir = filepath.Join(b.keep, name)
	}
	if _, err := os.Stat(dir); err != nil {
		if err := b.writeLayout(dir, layers, write); err != nil {
			return "", 0, err
		}
	}
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil {
		return "", 0, err
	}
	for _, e := range blobs {
		info, err := e.Info()
		if err != nil {
			return "", 0, err
		}
		if info.Size() > 1<<20 {
			size += info.Size()
		}
	}
	return dir, size, nil
}

func (b *bench) writeLayout(dir string, layers int, write func(*tar.Writer, int) error) error {
	img := emptyImage()
	for n := range layers {
		p, err := b.packGzip(n, write)
		if err != nil {
			return err
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: p}); err != nil {
			return err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64" // for which SOCI is asked
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	to, err := layout.Write(dir+".new", empty.Index)
	if err != nil {
		return err
	}
	if err := to.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})); err != nil {
		return err
	}
	return os.Rename(dir+".new", dir)
}

// packGzip makes a layer as most tools do.
func (b *bench) packGzip(layer int, write func(*tar.Writer, int) error) (p *packed, err error) {
	out, err := os.CreateTemp(b.dir, "layer-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum, plain := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(out, sum))
	w := tar.NewWriter(io.MultiWriter(z, plain))
	if err := errors.Join(write(w, layer), w.Close(), z.Close()); err != nil {
		return nil, err
	}
	p = &packed{path: out.Name(), digest: hashOf(sum), diffID: hashOf(plain)}
	p.size, err = out.Seek(0, io.SeekCurrent)
	return p, err
}

// indexByLacuna indexes into a copy of the layout that shares its layers' files.
func (b *bench) indexByLacuna(at string, n int) (e effort, err error) {
	dir := b.path(fmt.Sprintf("indexed-%d", n))
	if out, err := exec.Command("cp", "-al", at, dir).CombinedOutput(); err != nil {
		return e, fmt.Errorf("copy the layout: %w: %s", err, out)
	}
	// A file of the layout is replaced, and not changed.
	e, err = measured(b.dir, b.lacuna, "index", "--min-layer-size", "0B", "--v1", "--output", "oci-layout:"+dir, "oci-layout:"+dir)
	return e, errors.Join(err, os.RemoveAll(dir))
}

func (b *bench) indexBySOCI(at string, n int) (e effort, err error) {
	dir := b.path(fmt.Sprintf("indexed-soci-%d", n))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return e, err
	}
	e, err = measured(b.dir, b.soci, "create", at, strconv.Itoa(4<<20), "0", dir)
	return e, errors.Join(err, os.RemoveAll(dir))
}

// effort is what a program took.
type effort struct {
	Wall, CPU time.Duration
	RSS       int64 // bytes
}

func medianEffort(list []effort) (e effort) {
	var wall, cpu []time.Duration
	var rss []int64
	for _, e := range list {
		wall, cpu, rss = append(wall, e.Wall), append(cpu, e.CPU), append(rss, e.RSS)
	}
	slices.Sort(rss)
	return effort{median(wall), median(cpu), rss[len(rss)/2]}
}

// beMeasurer is the first argument of the process that measured starts.
const beMeasurer = "measure"

// measured runs a program, whose temporary files are below dir, in a child of a small
// process: the most resident memory of a child is at least its parent's when it was
// started (linux/fs/exec.c, exec_mmap).
func measured(dir string, args ...string) (e effort, err error) {
	self, err := os.Executable()
	if err != nil {
		return e, err
	}
	syscall.Sync()
	cmd := exec.Command(self, append([]string{beMeasurer}, args...)...)
	cmd.Env, cmd.Stderr = append(os.Environ(), "TMPDIR="+dir), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return e, fmt.Errorf("%v: %w", args, err)
	}
	return e, json.Unmarshal(out, &e)
}

// measure runs a program and prints what it took.
func measure(args []string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return err
	}
	took := time.Since(began)
	used, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return errors.ErrUnsupported
	}
	return json.NewEncoder(os.Stdout).Encode(effort{
		took, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), used.Maxrss << 10,
	})
}
