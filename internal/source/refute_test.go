package source_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/lacunafs/lacuna/internal/source"
)

var errFound = errors.New("it has another digest")

func wrong() error { return &source.WrongError{Err: errFound} }

func TestUntil(t *testing.T) {
	errGone := errors.New("gone")
	yes := func() (bool, error) { return true, nil }
	for _, c := range []struct {
		name   string
		read   []error // what comes, in order; the last one from then on
		refute func() (bool, error)
		calls  int
		want   []error
	}{
		{"right at once", []error{nil}, nil, 1, nil},
		{"fails", []error{errGone}, nil, 1, []error{errGone}},
		{"wrong, then right", []error{wrong(), wrong(), nil}, yes, 3, nil},
		{"wrong, then fails", []error{wrong(), errGone}, yes, 2, []error{errGone}},
		{"nobody else", []error{wrong()}, func() (bool, error) { return false, nil }, 1, []error{errFound}},
		{"cannot be closed", []error{wrong()}, func() (bool, error) { return true, errGone }, 1, []error{errFound, errGone}},
		{"wrong for ever, and nobody is to blame", []error{wrong()}, yes, 3, []error{errFound}},
	} {
		_, r := source.WithRefuted(t.Context())
		calls := 0
		err := r.Until(func() error {
			calls++
			return c.read[min(calls, len(c.read))-1]
		}, c.refute)
		if calls != c.calls || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %d calls, %v", c.name, calls, err)
		}
		for _, want := range c.want {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v is not %v", c.name, err, want)
			}
		}
	}
}

func TestRefutedAreNamedAndForgotten(t *testing.T) {
	ctx, r := source.WithRefuted(t.Context())
	if source.RefutedIn(ctx) != r || source.RefutedIn(t.Context()) != nil {
		t.Error("it is not what the context has")
	}
	names := []string{"a.example", "", "b.example", "a.example"}
	next := 0
	refute := func() (bool, error) {
		if r.Has(next) {
			t.Errorf("%d is refuted before it was", next)
		}
		r.Add(next, names[next])
		if !r.Has(next) {
			t.Errorf("%d is not refuted", next)
		}
		next++
		return next < len(names), nil
	}
	err := r.Until(wrong, refute)
	if err == nil || !strings.HasSuffix(err.Error(), "(wrong bytes came from a.example, b.example)") {
		t.Errorf("%v", err)
	}
	next = 0
	err = r.Until(func() error { return &source.WrongError{Err: errFound, Unsure: true} }, refute)
	if err == nil || strings.Contains(err.Error(), "came from") {
		t.Errorf("unsure: %v", err)
	}
	if err := r.Until(func() error { return nil }, nil); err != nil || r.Has(0) || r.Names() != "" {
		t.Errorf("the next part: %v, %q", err, r.Names())
	}
	var nobody *source.Refuted
	nobody.Add(1, "name")
	if nobody.Has(1) || nobody.Names() != "" {
		t.Error("nobody is refuted")
	}
}

// refutable is a body that can be refuted once.
type refutable struct {
	io.ReadCloser
	times int
}

func (r *refutable) Refute() bool {
	r.times++
	return r.times == 1
}

func TestExactForwardsRefute(t *testing.T) {
	body := &refutable{ReadCloser: io.NopCloser(strings.NewReader("abc"))}
	r := source.Exact(context.Background(), body, 3)
	if !source.Refute(r) || source.Refute(r) || body.times != 2 {
		t.Errorf("%d times", body.times)
	}
	if source.Refute(source.Exact(t.Context(), io.NopCloser(strings.NewReader("")), 1)) || source.Refute(nil) {
		t.Error("a body that is not refutable is refuted")
	}
}

// gives is a blob whose bodies are given, in turn.
type gives struct{ bodies []io.ReadCloser }

func (g *gives) Size() int64  { return 100 }
func (g *gives) Close() error { return nil }
func (g *gives) ReadRange(context.Context, int64, int64) (io.ReadCloser, error) {
	if len(g.bodies) == 0 {
		return nil, source.ErrUnreachable
	}
	body := g.bodies[0]
	g.bodies = g.bodies[1:]
	return body, nil
}

func TestNotedBodiesAreRefutedTogether(t *testing.T) {
	first := &refutable{ReadCloser: io.NopCloser(strings.NewReader("abc"))}
	second := &refutable{ReadCloser: io.NopCloser(strings.NewReader("abc"))}
	b := &source.Noted{Wrapper: source.Wrapper{Blob: &gives{[]io.ReadCloser{first, second, io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF))}}}}
	read := func() {
		t.Helper()
		r, err := b.ReadRange(t.Context(), 0, 3)
		if err != nil {
			return
		}
		_, err = io.ReadAll(r)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if failed := err != nil; failed != b.Failed() {
			t.Errorf("failed: %v, %v", b.Failed(), err)
		}
	}
	read()
	read()
	if !b.Refute() || first.times != 1 || second.times != 1 || b.Refute() {
		t.Errorf("refuted %d and %d times", first.times, second.times)
	}
	read()
	if !b.Failed() || b.Refute() || b.Failed() {
		t.Error("a body that broke is no failure, or one for ever")
	}
	if read(); !b.Failed() {
		t.Error("a request that fails is no failure")
	}
}
