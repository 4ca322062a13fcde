package zstdchunked

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// asked is a blob of zeros with an end of its own, that wants to be asked for what it has.
type asked struct {
	t    *testing.T
	size int64
	end  *toctest.Blob
}

func (a *asked) Size() int64 { return a.size }

func (a *asked) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	switch begin := a.size - a.end.Size(); {
	case off < 0 || n <= 0 || off > a.size-n:
		a.t.Errorf("[%d,+%d) of %d bytes is asked for", off, n, a.size)
	case off >= begin:
		return a.end.ReadRange(ctx, off-begin, n)
	}
	return nil, errNothing
}

var errNothing = errors.New("nothing there")

// FuzzFooter wants an end to every footer and annotation, and that nothing is asked for
// that the blob does not have.
func FuzzFooter(f *testing.F) {
	p := &podman{t: f}
	p.layer(toctest.Tar(f, []toctest.File{toctest.Reg("f", []byte("data"))}))
	tail := p.out.Bytes()
	tail = tail[max(0, len(tail)-300):]
	f.Add(tail, int64(len(tail)), "")
	f.Add(tail, int64(1<<40), "")
	f.Add([]byte("x"), int64(1000), "20:30:40:1")
	f.Add([]byte("x"), int64(1000), "9223372036854775807:9223372036854775807:1:1")
	f.Fuzz(func(t *testing.T, tail []byte, size int64, given string) {
		if size < int64(len(tail)) || size == 0 {
			return
		}
		l := &toc.Layer{Blob: &asked{t, size, &toctest.Blob{Bytes: tail}}}
		if given != "" {
			l.Annotations = map[string]string{"io.containers.zstd-chunked.manifest-position": given}
		}
		got, err := Read(t.Context(), l)
		if err == nil {
			err = got.TOC.Validate()
		} else if got == nil {
			return
		}
		if err != nil {
			t.Error(err)
		}
	})
}
