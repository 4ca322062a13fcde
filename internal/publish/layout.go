package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layout is a directory of images (image-spec, image-layout.md). Blobs come into being
// whole; index.json is replaced as a whole, by one process after the other. What is there
// is there after a power loss.
type Layout struct{ dir string }

// ErrNoLayout: a directory has something else in it.
var ErrNoLayout = errors.New("not an OCI layout")

// OpenLayout makes the directory, or adds to the layout that it is.
func OpenLayout(dir string) (*Layout, error) {
	l := &Layout{dir: dir}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open OCI layout %s: %w", dir, err)
	}
	return l, nil
}

func (l *Layout) open() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	return l.alone(context.Background(), l.openAlone)
}

func (l *Layout) openAlone() error {
	found, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(l.dir, v1.ImageLayoutFile))
	switch {
	case errors.Is(err, fs.ErrNotExist) && slices.ContainsFunc(found, isForeign):
		return fmt.Errorf("%w: it has files and no %s", ErrNoLayout, v1.ImageLayoutFile)
	case err == nil:
		var version v1.ImageLayout
		if json.Unmarshal(data, &version) != nil || version.Version != v1.ImageLayoutVersion {
			return fmt.Errorf("%w of version %s", ErrNoLayout, v1.ImageLayoutVersion)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	blobs := filepath.Join(l.dir, v1.ImageBlobsDir)
	if err := os.MkdirAll(filepath.Join(blobs, digest.SHA256.String()), 0o755); err != nil {
		return err
	}
	if err := syncDir(blobs); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(l.dir, v1.ImageIndexFile)); errors.Is(err, fs.ErrNotExist) {
		if err := l.writeIndex(v1.Index{Manifests: []v1.Descriptor{}}); err != nil {
			return err
		}
	}
	// What makes it one comes last.
	data, err = json.Marshal(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return l.replace(filepath.Join(l.dir, v1.ImageLayoutFile), bytes.NewReader(data), nil)
}

// newFile is how files begin that are not there yet.
const newFile = ".new-"

// isForeign tells what somebody else has put into a directory from what a layout has
// that was not made to its end.
func isForeign(e fs.DirEntry) bool {
	return e.Name() != v1.ImageBlobsDir && e.Name() != v1.ImageIndexFile && !strings.HasPrefix(e.Name(), newFile)
}

// alonePause is how long who waits for his turn at index.json waits before he looks again.
const alonePause = 20 * time.Millisecond

// alone changes index.json while nobody else does: the directory is locked, which ends
// with the process.
func (l *Layout) alone(ctx context.Context, change func() error) (err error) {
	dir, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for {
		err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return change()
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return fmt.Errorf("lock %s: %w", l.dir, err)
		}
		select {
		case <-time.After(alonePause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close does nothing: nothing is in progress between calls.
func (l *Layout) Close() error { return nil }

func (l *Layout) path(d digest.Digest) string {
	return filepath.Join(l.dir, v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// Has implements Place. A file of another size is no such blob.
func (l *Layout) Has(_ context.Context, d v1.Descriptor) (bool, error) {
	st, err := os.Stat(l.path(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for blob %s: %w", d.Digest, err)
	}
	return st.Mode().IsRegular() && st.Size() == d.Size, nil
}

// Blob implements Place.
func (l *Layout) Blob(ctx context.Context, d v1.Descriptor, body io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(l.path(d.Digest)), 0o755); err != nil {
		return fmt.Errorf("write blob %s: %w", d.Digest, err)
	}
	sum := d.Digest.Verifier()
	err := l.replace(l.path(d.Digest), io.TeeReader(body, sum), func() error {
		if ctx.Err() == nil && !sum.Verified() {
			return errors.New("it has other bytes")
		}
		return ctx.Err()
	})
	if err != nil {
		return fmt.Errorf("write blob %s: %w", d.Digest, err)
	}
	return nil
}

// replace writes a file that is there when all of it is, and check says that it may be.
func (l *Layout) replace(name string, body io.Reader, check func() error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), newFile+"*")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(f.Name(), name)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
			return
		}
		err = syncDir(filepath.Dir(name))
	}()
	if _, err := io.Copy(f, body); err != nil {
		return err
	}
	if check != nil {
		if err := check(); err != nil {
			return err
		}
	}
	return errors.Join(f.Chmod(0o644), f.Sync())
}

// syncDir makes the names in a directory durable.
func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	err = dir.Sync()
	if errors.Is(err, syscall.EINVAL) {
		err = nil // a filesystem that has no such thing (fsync(2))
	}
	return errors.Join(err, dir.Close())
}

// Manifest implements Place. One with a subject is listed in index.json, where it is
// looked for.
func (l *Layout) Manifest(ctx context.Context, data []byte, mediaType string) error {
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := l.Blob(ctx, d, bytes.NewReader(data)); err != nil {
		return err
	}
	var m v1.Manifest
	if json.Unmarshal(data, &m) != nil || m.Subject == nil {
		return nil
	}
	if d.ArtifactType = m.ArtifactType; d.ArtifactType == "" {
		d.ArtifactType = m.Config.MediaType
	}
	return l.list(ctx, d, func(o v1.Descriptor) bool { return o.Digest == d.Digest })
}

// Name implements Place.
func (l *Layout) Name(ctx context.Context, data []byte, mediaType, tag string) error {
	if err := l.Manifest(ctx, data, mediaType); err != nil {
		return err
	}
	d := v1.Descriptor{
		MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data)),
		Annotations: map[string]string{v1.AnnotationRefName: tag},
	}
	return l.list(ctx, d, func(o v1.Descriptor) bool { return o.Annotations[v1.AnnotationRefName] == tag })
}

// list puts d into index.json, in place of what is the same.
func (l *Layout) list(ctx context.Context, d v1.Descriptor, same func(v1.Descriptor) bool) error {
	return l.alone(ctx, func() error { return l.listAlone(d, same) })
}

func (l *Layout) listAlone(d v1.Descriptor, same func(v1.Descriptor) bool) error {
	data, err := os.ReadFile(filepath.Join(l.dir, v1.ImageIndexFile))
	if err != nil {
		return err
	}
	var index v1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return fmt.Errorf("read %s of %s: %w: %w", v1.ImageIndexFile, l.dir, ErrNoLayout, err)
	}
	if i := slices.IndexFunc(index.Manifests, same); i >= 0 {
		index.Manifests[i] = d
	} else {
		index.Manifests = append(index.Manifests, d)
	}
	return l.writeIndex(index)
}

func (l *Layout) writeIndex(index v1.Index) error {
	index.Versioned, index.MediaType = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageIndex
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return l.replace(filepath.Join(l.dir, v1.ImageIndexFile), bytes.NewReader(data), nil)
}
