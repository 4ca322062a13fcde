package source_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
)

// closing notes that it is closed.
type closing struct {
	refutable
	times int
}

func (c *closing) Close() error {
	c.times++
	return nil
}

func newClosing() *closing {
	return &closing{refutable: refutable{ReadCloser: io.NopCloser(strings.NewReader("abc"))}}
}

func TestBodyIsReplaced(t *testing.T) {
	var b source.Body
	errGone := errors.New("gone")
	first, second := newClosing(), newClosing()
	for _, rc := range []*closing{first, second} {
		r, err := b.Replace(func() (io.ReadCloser, error) { return rc, nil })
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); string(got) != "abc" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	if first.times != 1 || second.times != 0 {
		t.Errorf("closed %d and %d times", first.times, second.times)
	}
	if !b.Refute() || first.refutable.times != 0 {
		t.Error("another body than the last one is refuted")
	}
	if _, err := b.Replace(func() (io.ReadCloser, error) { return nil, errGone }); !errors.Is(err, errGone) || second.times != 1 {
		t.Errorf("a request that fails: %v, closed %d times", err, second.times)
	}
	if b.Refute() {
		t.Error("no body is refuted")
	}
}

func TestBodyThatIsClosed(t *testing.T) {
	var b source.Body
	late := newClosing()
	asked := false
	// It is closed while the next one is asked for.
	_, err := b.Replace(func() (io.ReadCloser, error) { return late, b.Close() })
	if !errors.Is(err, os.ErrClosed) || late.times != 1 {
		t.Errorf("%v, closed %d times", err, late.times)
	}
	_, err = b.Replace(func() (io.ReadCloser, error) {
		asked = true
		return late, nil
	})
	if !errors.Is(err, os.ErrClosed) || asked || b.Refute() {
		t.Errorf("after Close: %v, asked %v", err, asked)
	}
	if err := b.Close(); err != nil || late.times != 1 {
		t.Errorf("again: %v, closed %d times", err, late.times)
	}
}
