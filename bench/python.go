package main

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// An image that python3 is run in, of gzip layers: pythonImage is a Debian with python3,
// a Go toolchain and a JDK, pythonAlone a Debian with python3.
const (
	pythonImage = "python"
	pythonAlone = "python-alone"
)

// pythonProgram is what is run in it.
const pythonProgram = "import json,asyncio,ssl,sqlite3,http.client"

// python measures from starting the command that mounts to the end of a program
// that runs in the mount, with an empty cache and a registry far away.
func python(b *bench) error {
	for _, way := range []struct {
		what, suffix string
		make         []string // of the plain image
		v1           bool     // the plain image itself gets the index, in a repository of its own
		alone        bool     // of pythonAlone
		goal         string
	}{
		{what: "SOCI v2", suffix: "-soci", make: []string{"index", "--push"}, goal: "at most 1.0 s"},
		{what: "SOCI v2", suffix: "-soci", make: []string{"index", "--push"}, alone: true},
		{what: "SOCI v2 with spans of 2 MiB", suffix: "-soci-2m", make: []string{"index", "--push", "--span-size", "2MiB", "--tag", "1-soci-2m"}},
		{what: "SOCI v2 with spans of 1 MiB", suffix: "-soci-1m", make: []string{"index", "--push", "--span-size", "1MiB", "--tag", "1-soci-1m"}},
		{what: "SOCI v1", make: []string{"index", "--v1", "--push"}, v1: true, goal: "at most 1.0 s"},
		{what: "eStargz", suffix: "-estargz", make: []string{"convert", "--to", "estargz", "--push"}},
		{what: "plain gzip"},
	} {
		from := pythonImage
		if way.alone {
			from = pythonAlone
		}
		img, err := b.image(from)
		if err != nil {
			return err
		}
		repo := from
		if way.v1 {
			repo += "-v1"
		}
		w := pythonWay{b: b, what: way.what, ref: b.registry.host + "/" + repo + ":1" + way.suffix}
		if err := w.prepare(from, b.registry.far+"/"+repo+":1", way.suffix, way.make); err != nil {
			return fmt.Errorf("%s: %w", way.what, err)
		}
		if err := w.measure(img, way.goal); err != nil {
			return fmt.Errorf("%s: %w", way.what, err)
		}
	}
	return nil
}

// pythonWay is one form of the image.
type pythonWay struct {
	b         *bench
	what, ref string
	ztocs     []string // digests of its index
	index     int64    // their bytes
}

// prepare makes it of the image from, whose copy is plain, unless the registry has it.
func (w *pythonWay) prepare(from, plain, suffix string, make []string) error {
	w.b.registry.line.set(false)
	if err := w.b.copyImage(w.b.registry.far+"/"+from+":1", plain); err != nil {
		return err
	}
	soci := strings.HasPrefix(w.what, "SOCI")
	told := func() ([]byte, error) {
		return exec.Command(w.b.lacuna, "index", "info", "--json", plain+suffix).Output()
	}
	out, err := told()
	if soci && err != nil || !soci && len(make) > 0 && !w.b.has(plain+suffix) {
		if out, err := exec.Command(w.b.lacuna, append(slices.Clone(make), plain)...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", make, err, out)
		}
		out, err = told()
	}
	if !soci {
		return nil
	}
	if err != nil {
		return fmt.Errorf("index info: %w", err)
	}
	var info struct {
		Layers []struct {
			Ztoc     string `json:"ztoc"`
			ZtocSize int64  `json:"ztoc_size"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return err
	}
	for _, l := range info.Layers {
		w.ztocs, w.index = append(w.ztocs, l.Ztoc), w.index+l.ZtocSize
	}
	return nil
}

// pythonRun is what one run took.
type pythonRun struct {
	ready, first, total time.Duration // from the command on
	tally               tally
	index, indexFirst   int64 // bytes of zTOCs in all, and before the first byte of a file
}

func (w *pythonWay) measure(img *image, goal string) error {
	var ready, total, first []time.Duration
	var last pythonRun
	for n := range w.b.rounds {
		run, err := w.run(n, false)
		if err != nil {
			return err
		}
		ready, total, last = append(ready, run.ready), append(total, run.total), run
	}
	run, err := w.run(w.b.rounds, true)
	if err != nil {
		return err
	}
	first = append(first, run.first)
	text := fmt.Sprintf("%s: %s until mounted, %s of python; %d requests, %.1f MB", ms(median(total)), ms(median(ready)),
		ms(median(total)-median(ready)), last.tally.requests, float64(last.tally.bytes)/1e6)
	if w.index > 0 {
		text += fmt.Sprintf(", of which %.1f MB of the index", float64(last.index)/1e6)
	}
	row(fmt.Sprintf("`%s` in a chroot of an image of %d MB in %d gzip layers as %s, registry behind 10 ms and 50 MB/s, from `mount` on",
		"python3 -c "+pythonProgram, img.size/1e6, len(img.layers), w.what), text, "", "", goal)
	text = fmt.Sprintf("%s; %d requests, %.1f MB", ms(median(first)), run.tally.requests, float64(run.tally.bytes)/1e6)
	goal = ""
	if w.index > 0 {
		text += fmt.Sprintf(", of which %.2f of the %.1f MB of the zTOCs: %.0f %%", float64(run.indexFirst)/1e6, float64(w.index)/1e6,
			100*float64(run.indexFirst)/float64(w.index))
		goal = "at most 25 % of the zTOCs"
	}
	row("the same image: first byte of python3", text, "", "", goal)
	return nil
}

// run mounts the image with an empty cache and runs the program, or reads the first
// byte of its file.
func (w *pythonWay) run(n int, firstByte bool) (r pythonRun, err error) {
	root := w.b.path(fmt.Sprintf("root-python-%d", n))
	l := w.b.registry.line
	stop := w.b.traced(l)
	l.set(true)
	m, err := w.b.mount(&image{ref: w.ref}, root)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, stop(m.began), m.close(), os.RemoveAll(root)) }()
	r.ready = m.ready.Sub(m.began)
	if firstByte {
		link, err := os.Readlink(m.path("usr/bin/python3"))
		if err != nil {
			return r, err
		}
		if err := m.firstByte(filepath.Join("usr/bin", link)); err != nil {
			return r, err
		}
		r.first, r.indexFirst, r.tally = time.Since(m.began), l.of(w.ztocs), l.count(nil)
		return r, nil
	}
	out, err := exec.Command("chroot", m.dir, "/usr/bin/python3", "-c", pythonProgram).CombinedOutput()
	r.total, r.index, r.tally = time.Since(m.began), l.of(w.ztocs), l.count(nil)
	if err != nil {
		return r, fmt.Errorf("python: %w: %s", err, out)
	}
	return r, nil
}

// traced collects the requests of the line, if that was asked for; the function that
// it returns tells them.
func (b *bench) traced(l *line) func(began time.Time) error {
	var mu sync.Mutex
	var all []asked
	if !b.trace {
		return func(time.Time) error { return nil }
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trace = func(a asked) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, a)
	}
	return func(began time.Time) error {
		mu.Lock()
		defer mu.Unlock()
		slices.SortFunc(all, func(a, b asked) int { return a.began.Compare(b.began) })
		text := ""
		for _, a := range all {
			text += fmt.Sprintf("%8s %8s %8s %9d  %-26s %s\n", ms(a.began.Sub(began)), ms(a.first.Sub(began)), ms(a.end.Sub(began)), a.bytes,
				strings.TrimPrefix(a.ranged, "bytes="), a.path[max(0, len(a.path)-90):])
		}
		_, err := fmt.Fprintf(os.Stderr, "   asked    first      end     bytes  range\n%s\n", text)
		return err
	}
}

// has tells whether the registry has that tag.
func (b *bench) has(ref string) bool {
	tag, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return false
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	_, err = remote.Head(tag, remote.WithTransport(transport))
	return err == nil
}

// copyImage copies an image to another repository, unless it is there.
func (b *bench) copyImage(from, to string) error {
	if from == to || b.has(to) {
		return nil
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	options := []remote.Option{remote.WithTransport(transport), remote.WithJobs(1)}
	source, err := name.ParseReference(from, name.Insecure)
	if err != nil {
		return err
	}
	tag, err := name.ParseReference(to, name.Insecure)
	if err != nil {
		return err
	}
	img, err := remote.Image(source, options...)
	if err != nil {
		return err
	}
	return remote.Write(tag, img, options...)
}

// buildDebian makes an image of the layers that scripts/debian.sh makes: of all, or of the
// first so many.
func (b *bench) buildDebian(layers int) (v1.Image, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(string(mod)), "scripts", "debian.sh"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("debian.sh: %w", err)
	}
	tars, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "*.tar"))
	if err != nil || len(tars) == 0 {
		return nil, fmt.Errorf("debian.sh made %d layers: %w", len(tars), err)
	}
	if layers > 0 {
		tars = tars[:min(layers, len(tars))]
	}
	img := emptyImage()
	for _, tar := range tars {
		l, err := b.zip(tar)
		if err != nil {
			return nil, fmt.Errorf("compress %s: %w", tar, err)
		}
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l}); err != nil {
			return nil, err
		}
	}
	return configured(img)
}

// zip makes a gzip layer of a tar.
func (b *bench) zip(tar string) (p *packed, err error) {
	in, err := os.Open(tar)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.CreateTemp(b.dir, "layer-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	plain, sum, size := sha256.New(), sha256.New(), counted{}
	w := gzip.NewWriter(io.MultiWriter(out, sum, &size))
	if _, err := io.Copy(io.MultiWriter(w, plain), in); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return &packed{path: out.Name(), digest: hashOf(sum), diffID: hashOf(plain), size: size.n}, nil
}

// counted counts what is written.
type counted struct{ n int64 }

// Write is io.Writer's.
func (c *counted) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
