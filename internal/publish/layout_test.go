package publish_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/publish"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
)

// A layout gets the whole image; its layers are read once on the way. An image of a
// layout, without a registry, is good too.
func TestLayouts(t *testing.T) {
	r := ocitest.New(t)
	amd, files, _ := image(t, "amd64")
	ref := r.Push(t, "app:1", amd)
	dir := t.TempDir()
	for _, version := range []int{1, 2} {
		one := filepath.Join(dir, fmt.Sprint("one", version))
		if _, err := publish.Index(t.Context(), whole(t, ref, options()), layout(t, one), index(version, "x")); err != nil {
			t.Fatal(err)
		}
		compareFiles(t, "oci-layout:"+one+":x", "", version, files)
		compareFiles(t, "oci-layout:"+one, "", version, files) // it is the only one there
	}
	two := filepath.Join(dir, "two")
	from := whole(t, "oci-layout:"+filepath.Join(dir, "one2")+":x", options())
	if _, err := publish.Index(t.Context(), from, layout(t, two), index(2, "y")); err != nil {
		t.Fatal(err)
	}
	compareFiles(t, "oci-layout:"+two+":y", "", 2, files)
	other := r.Host() + "/other/app:2"
	if _, err := publish.Index(t.Context(), from, upload(t, other, options()), index(1, "2")); err != nil {
		t.Fatal(err)
	}
	compareFiles(t, other, "", 2, files) // it brings its own, which is better
	if _, err := publish.OpenLayout(filepath.Dir(dir)); !errors.Is(err, publish.ErrNoLayout) {
		t.Errorf("a directory with other things: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", "blobs", "sha256", ".new-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Several processes may write to one layout at once.
func TestLayoutIsShared(t *testing.T) {
	dir := t.TempDir()
	data := []byte(`{"schemaVersion":2,"config":{},"layers":[]}`)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for k := range 5 {
				l, err := publish.OpenLayout(dir)
				if err == nil {
					err = l.Name(t.Context(), data, v1.MediaTypeImageManifest, fmt.Sprint(n, "-", k))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	var index v1.Index
	text, err := os.ReadFile(filepath.Join(dir, v1.ImageIndexFile))
	if err := errors.Join(err, json.Unmarshal(text, &index)); err != nil || len(index.Manifests) != 40 {
		t.Errorf("%d tags, %v", len(index.Manifests), err)
	}
	late := layout(t, dir)
	lock, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lock.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := late.Name(ctx, data, v1.MediaTypeImageManifest, "late"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another process has it: %v", err)
	}
}

// A layout that was not made to its end is made to it.
func TestLayoutIsFinished(t *testing.T) {
	dir := t.TempDir()
	layout(t, dir)
	for _, name := range []string{"oci-layout", "index.json", filepath.Join("blobs", "sha256"), "blobs"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, ".new-7"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		cut := filepath.Join(t.TempDir(), "cut")
		if err := os.CopyFS(cut, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if err := layout(t, cut).Name(t.Context(), []byte("{}"), v1.MediaTypeImageManifest, "x"); err != nil {
			t.Errorf("without %s: %v", name, err)
		}
	}
}
