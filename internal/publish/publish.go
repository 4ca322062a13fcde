// Package publish makes images out of images, and puts them into registries and OCI
// layouts: images with a SOCI index, whose layers stay what they are (Index), and images
// whose layers have another format (Convert). It looks into indices too.
//
// A layer is read once, verified by its digest as it comes, and never held in memory.
// What is made depends on nothing but the image and the options.
package publish

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/toc"
)

// Place is where images are put. All methods may be called concurrently.
type Place interface {
	// Has tells whether the blob is there.
	Has(ctx context.Context, d v1.Descriptor) (bool, error)
	// Blob puts the blob d, whose bytes body has. Where these are not d's, or body
	// fails, there is no such blob.
	Blob(ctx context.Context, d v1.Descriptor, body io.Reader) error
	// Manifest puts a manifest or an index, whose blobs and manifests are there. One
	// with a subject is found by it.
	Manifest(ctx context.Context, data []byte, mediaType string) error
	// Name makes the tag name a manifest or an index.
	Name(ctx context.Context, data []byte, mediaType, tag string) error
	// Close ends what is in progress.
	Close() error
}

var (
	_ Place = (*oci.Upload)(nil)
	_ Place = (*Layout)(nil)
)

// ErrNothing: there is nothing to make of the image.
var ErrNothing = errors.New("nothing to do")

// Report is told how it goes; its functions are called one at a time.
type Report struct {
	// Read is called with how many bytes of layers were read, and how many there
	// are; nil: not.
	Read func(done, total int64)
	// Note is called with what is worth to know; nil: not.
	Note func(string)
}

// maker is one run of Index or Convert.
type maker struct {
	from  *oci.Whole
	to    Place
	retry retry.Policy

	mu          sync.Mutex
	report      Report
	done, total int64
}

func (m *maker) note(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.report.Note != nil {
		m.report.Note(fmt.Sprintf(format, args...))
	}
}

func (m *maker) read(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	if m.report.Read != nil {
		m.report.Read(m.done, m.total)
	}
}

// atOnce is how many layers are worked on at once: more would not be faster.
func atOnce() int { return max(2, runtime.GOMAXPROCS(0)) }

// each works on descriptors, several at once, and ends with the first error.
func each(ctx context.Context, n int, work func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce())
	for i := range n {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return work(ctx, i)
		})
	}
	return g.Wait()
}

// put puts a small blob.
func (m *maker) put(ctx context.Context, data []byte) (v1.Descriptor, error) {
	d := v1.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, m.putFrom(ctx, d, func() io.Reader { return newReader(data) })
}

// putFrom puts a blob that can be read again.
func (m *maker) putFrom(ctx context.Context, d v1.Descriptor, body func() io.Reader) error {
	return retry.Do(ctx, m.retry, func() error {
		has, err := m.to.Has(ctx, d)
		if err != nil || has {
			return err
		}
		return m.to.Blob(ctx, d, body())
	})
}

func (m *maker) putManifest(ctx context.Context, data []byte, mediaType string) error {
	return retry.Do(ctx, m.retry, func() error { return m.to.Manifest(ctx, data, mediaType) })
}

func (m *maker) name(ctx context.Context, data []byte, mediaType, tag string) error {
	return retry.Do(ctx, m.retry, func() error { return m.to.Name(ctx, data, mediaType, tag) })
}

// use reads the blob d from its first byte to its last. Where its digest is another
// one, the reader ends with toc.ErrDigest, and so does use, whatever use made of it.
func (m *maker) use(ctx context.Context, d v1.Descriptor, use func(*verifying) error) (err error) {
	blob, err := m.from.Blob(ctx, d)
	if err != nil {
		return err
	}
	blob = retry.Wrap(blob, m.retry)
	defer func() { err = errors.Join(err, blob.Close()) }()
	body, err := blob.ReadRange(ctx, 0, d.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	v := &verifying{in: body, sum: d.Digest.Verifier(), of: d.Digest, read: m.read}
	err = use(v)
	var elsewhere *writeError
	if errors.As(err, &elsewhere) {
		return err
	}
	// Damage shows as many things, and the digest says that it is damage.
	if _, rest := io.Copy(io.Discard, v); rest != nil && (err == nil || errors.Is(rest, toc.ErrDigest)) {
		return rest
	}
	return err
}

// writeError is one of writing, which says nothing about what was read.
type writeError struct{ error }

// Unwrap is the error.
func (e *writeError) Unwrap() error { return e.error }

// verifying ends with toc.ErrDigest where it should not end with io.EOF.
type verifying struct {
	in   io.Reader
	sum  digest.Verifier
	of   digest.Digest
	read func(int64)
	n    int64 // that have been read
	err  error
}

func (v *verifying) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.in.Read(p)
	if n > 0 {
		v.n += int64(n)
		v.read(int64(n))
		if _, err := v.sum.Write(p[:n]); err != nil {
			return 0, err
		}
	}
	if errors.Is(err, io.EOF) && !v.sum.Verified() {
		err = fmt.Errorf("read %s: it has other bytes: %w", v.of, toc.ErrDigest)
	}
	v.err = err
	return n, err
}

// failed is why there is no more to read, other than that it is the end.
func (v *verifying) failed() error {
	if errors.Is(v.err, io.EOF) {
		return nil
	}
	return v.err
}

// leavesOut tells whether a layer only is not, or has not, what use looks for: it is what
// its digest says, and is put all the same.
func leavesOut(err error) bool {
	return errors.Is(err, toc.ErrNotFormat) || errors.Is(err, toc.ErrLimit)
}

// copying reads the blob d for use, and puts it, at the same time. Where use only leaves
// the layer out, it is put all the same. Where the place fails for a while, all of that
// is done again; reading has its own retries.
func (m *maker) copying(ctx context.Context, d v1.Descriptor, use func(io.Reader) error) error {
	var read int64
	var ended error // of all but the place
	err := retry.Do(ctx, m.retry, func() error {
		m.read(-read) // what was read before counts no more
		var err error
		read, err = m.copyOnce(ctx, d, use)
		var elsewhere *writeError
		if ended = nil; !errors.As(err, &elsewhere) {
			ended, err = err, nil
		}
		return err
	})
	return cmp.Or(err, ended)
}

// copyOnce is copying without another try, and tells how many bytes it has read.
func (m *maker) copyOnce(ctx context.Context, d v1.Descriptor, use func(io.Reader) error) (read int64, err error) {
	err = m.use(ctx, d, func(in *verifying) error {
		defer func() { read = in.n }()
		out, write := io.Pipe()
		put := make(chan error, 1)
		go func() {
			err := m.to.Blob(ctx, d, out)
			if err == nil {
				// It may be content with fewer bytes, or with all of them before their end.
				_, err = io.Copy(io.Discard, out)
			}
			put <- err
			out.CloseWithError(err) //nolint:errcheck // it has none; who still writes gets err
		}()
		tee := io.TeeReader(in, write)
		err := use(tee)
		failed := err
		if err == nil || leavesOut(err) {
			_, failed = io.Copy(io.Discard, tee)
		}
		select {
		case unput := <-put: // the place has not waited for the end
			return errors.Join(&writeError{unput}, in.failed())
		default:
		}
		// The place must not take what is cut short for the whole.
		write.CloseWithError(failed) //nolint:errcheck // it has none
		unput := <-put
		switch {
		case in.failed() != nil:
			return in.failed()
		case failed != nil:
			return failed
		case unput != nil:
			return &writeError{unput}
		}
		return err
	})
	return read, err
}

func (m *maker) has(ctx context.Context, d v1.Descriptor) (has bool, err error) {
	err = retry.Do(ctx, m.retry, func() error {
		has, err = m.to.Has(ctx, d)
		return err
	})
	return has, err
}

// blobsOf are the configuration and the layers of manifests, each once.
func blobsOf(manifests [][]byte) ([]v1.Descriptor, error) {
	var list []v1.Descriptor
	seen := make(map[digest.Digest]bool)
	for _, data := range manifests {
		if data == nil {
			continue
		}
		var doc v1.Manifest
		if err := json.Unmarshal(data, &doc); err != nil {
			return nil, fmt.Errorf("read manifest %s: %w: %w", digest.FromBytes(data), err, source.ErrNotBytes)
		}
		for _, d := range append([]v1.Descriptor{doc.Config}, doc.Layers...) {
			if !seen[d.Digest] {
				seen[d.Digest] = true
				list = append(list, d)
			}
		}
	}
	return list, nil
}
