package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// figures are what is told of one image.
type figures struct {
	total         int64 // bytes of its layers in the registry
	ready, bash   time.Duration
	fetchedByBash int64
	digest        string // of all files' bytes
}

// show does all of it, and returns what it comes to.
func (d *demo) show(ctx context.Context) (summary string, err error) {
	host, end, err := d.serve()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, end()) }()
	images, err := d.build(ctx, host)
	if err != nil {
		return "", err
	}
	if err := d.say("the registry is on this machine, but thinks %v about each request and sends %d MB/s", d.latency, d.rate/1e6); err != nil {
		return "", err
	}
	d.line.slow.Store(true)
	var seen [2]figures
	for i, tag := range []string{"estargz", "gzip"} {
		seen[i].total = images[i]
		if err := d.try(ctx, host+"/demo:"+tag, filepath.Join(d.work, tag), &seen[i]); err != nil {
			return "", err
		}
	}
	if seen[0].digest != seen[1].digest {
		return "", fmt.Errorf("the mounts differ: the digests of all their files are %s and %s", seen[0].digest, seen[1].digest)
	}
	if d.linger {
		if err := d.keepOn(host); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("bash ran after %s with %s of %s MiB fetched; as gzip after %s, with %s of %s MiB",
		seconds(seen[0].bash), number(seen[0].fetchedByBash), number(seen[0].total),
		seconds(seen[1].bash), number(min(seen[1].fetchedByBash, seen[1].total)), number(seen[1].total)), nil
}

// keepOn leaves the registry to whoever goes on by hand.
func (d *demo) keepOn(host string) error {
	err := d.say(`
the registry goes on until Ctrl-C; it has demo:estargz and demo:gzip. For example:
  lacuna mount %[1]s/demo:estargz /mnt/app &
  lacuna status
  lacuna index --push %[1]s/demo:gzip
  lacuna stop`, host)
	<-d.until
	return err
}

// build makes the images and returns how large their layers are.
func (d *demo) build(ctx context.Context, host string) (sizes [2]int64, err error) {
	start := time.Now()
	if err := os.Mkdir(d.blobs(), 0o700); err != nil {
		return sizes, err
	}
	t, err := d.choose(ctx)
	if err != nil {
		return sizes, fmt.Errorf("choose the image's files: %w", err)
	}
	if err := d.say("making an image of %s, %d names, %d layers", mib(t.size), len(t.names)-1, len(t.layers)); err != nil {
		return sizes, err
	}
	var tars []string
	for i, l := range t.layers {
		if err := d.say("  layer %d  %9s  %s", i+1, mib(l.size), l.name); err != nil {
			return sizes, err
		}
		tars = append(tars, filepath.Join(d.work, fmt.Sprintf("layer%d.tar", i)))
		if err := l.write(ctx, tars[i]); err != nil {
			return sizes, err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	var images [2]v1.Image
	g.Go(func() (err error) { images[0], sizes[0], err = pack(gctx, tars, d.packEStargz); return err })
	g.Go(func() (err error) { images[1], sizes[1], err = pack(gctx, tars, d.packGzip); return err })
	if err := g.Wait(); err != nil {
		return sizes, err
	}
	for i, tag := range []string{"estargz", "gzip"} {
		if err := push(ctx, host+"/demo:"+tag, images[i]); err != nil {
			return sizes, err
		}
	}
	for _, name := range tars {
		if err := os.Remove(name); err != nil {
			return sizes, err
		}
	}
	return sizes, d.say("  as eStargz %s, as gzip %s; made in %s", mib(sizes[0]), mib(sizes[1]), seconds(time.Since(start)))
}

// step is one line of the timeline.
type step struct {
	what string
	run  func(context.Context, *mounted) (string, error)
}

var steps = []step{
	{"find | wc -l", func(ctx context.Context, m *mounted) (string, error) {
		return output(group(exec.CommandContext(ctx, "sh", "-c", `find "$0" | wc -l`, m.dir)))
	}},
	{"chroot bash", func(ctx context.Context, m *mounted) (string, error) {
		return m.within(ctx, "/bin/bash", "/app/hello")
	}},
	{"chroot perl", func(ctx context.Context, m *mounted) (string, error) {
		return m.within(ctx, "/usr/bin/perl", "-e", `printf "perl %vd", $^V`)
	}},
	{"chroot python3", func(ctx context.Context, m *mounted) (string, error) {
		if !exists(filepath.Join(m.dir, "usr/bin/python3")) {
			return "", nil
		}
		return m.within(ctx, "/usr/bin/python3", "-c", "import sys, json; print('python', sys.version.split()[0])")
	}},
	{"chroot go", func(ctx context.Context, m *mounted) (string, error) {
		if !exists(filepath.Join(m.dir, "usr/local/go/bin/go")) {
			return "", nil
		}
		return m.within(ctx, "/usr/local/go/bin/go", "version")
	}},
}

// try mounts an image, uses it, and unmounts it.
func (d *demo) try(ctx context.Context, ref, dir string, f *figures) (err error) {
	bytesBefore, requestsBefore := d.line.bytes.Load(), d.line.requests.Load()
	if err := d.say("\n$ lacuna mount %s %s\n  %8s  %10s  %9s", ref, dir, "after", "fetched", "requests"); err != nil {
		return err
	}
	start := time.Now()
	at := func(what, said string) error {
		return d.say("  %8s  %10s  %9d  %s", seconds(time.Since(start)), mib(d.line.bytes.Load()-bytesBefore),
			d.line.requests.Load()-requestsBefore, strings.TrimRight(fmt.Sprintf("%-16s %s", what, said), " "))
	}
	m, err := d.mount(ctx, ref, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.unmount()) }()
	f.ready = time.Since(start)
	if err := at("ready", ""); err != nil {
		return err
	}
	for _, s := range steps {
		said, err := s.run(ctx, m)
		if err != nil {
			return err
		}
		if said == "" {
			continue
		}
		if s.what == "chroot bash" {
			f.bash, f.fetchedByBash = time.Since(start), d.line.bytes.Load()-bytesBefore
		}
		if err := at(s.what, said); err != nil {
			return err
		}
	}
	if f.digest, err = digest(ctx, dir); err != nil {
		return err
	}
	return at("read every file", "sha256 "+f.digest[:16]+"...")
}

// digest is over the names and bytes of all files below dir.
func digest(ctx context.Context, dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err == nil {
			_, err = fmt.Fprintf(h, "%q\n", rel)
		}
		if err == nil {
			_, err = io.Copy(h, f)
		}
		return errors.Join(err, f.Close())
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
