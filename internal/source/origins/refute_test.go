package origins_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/origins"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/source/trace"
)

// liars are origins in all that is around them in a daemon.
func liars(t *testing.T, data []byte, names ...string) (source.Blob, []*sourcetest.Liar, *trace.Tally) {
	t.Helper()
	b := origins.New(source.Identity{Size: int64(len(data)), Validator: "v"})
	var all []*sourcetest.Liar
	tally, group := trace.NewTally(nil), limit.NewGroup(4)
	for _, name := range names {
		l := &sourcetest.Liar{Blob: mem.New(data), Name: name}
		all = append(all, l)
		if err := b.Add(group.Demand(tally.Wrap(l)), name); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return retry.Wrap(b, retry.Policy{First: time.Millisecond}), all, tally
}

// begin asks for all, and reads a part.
func begin(t *testing.T, ctx context.Context, b source.Blob, n int64) io.ReadCloser {
	t.Helper()
	r, err := b.ReadRange(ctx, 0, b.Size())
	if err == nil && n > 0 {
		_, err = io.CopyN(io.Discard, r, n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustClose(t *testing.T, r io.Closer) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// Who was refuted is not asked with the same context again, and by others last.
func TestRefutedOrigins(t *testing.T) {
	data := sourcetest.Bytes(size)
	b, all, tally := liars(t, data, "a", "b", "c")
	ctx, refuted := source.WithRefuted(t.Context())
	for n := range all {
		r := begin(t, ctx, b, 100)
		if again := source.Refute(r); again != (n < 2) {
			t.Errorf("refuted %d: another is left: %v", n, again)
		}
		mustClose(t, r)
		if asked, wrong := all[n].Asked(); asked != 1 || wrong != 1 {
			t.Errorf("origin %d: %d requests, %d refuted", n, asked, wrong)
		}
	}
	if names := refuted.Names(); names != "a, b, c" {
		t.Errorf("refuted: %s", names)
	}
	if _, err := b.ReadRange(ctx, 0, 10); err == nil {
		t.Error("all are refuted, and one is asked")
	}
	if s := tally.Snapshot(); s.Failed != 3 || s.Open != 0 {
		t.Errorf("%+v", s)
	}
	// All rest: the one that does longest is asked first.
	sourcetest.MustRead(t, b, data, 0, 10)
	if asked, _ := all[0].Asked(); asked != 2 {
		t.Errorf("the first was asked %d times", asked)
	}
}

// Without a context that notes it nobody could be passed over.
func TestRefuteWithoutNotes(t *testing.T) {
	data := sourcetest.Bytes(size)
	b, all, _ := liars(t, data, "a", "b")
	r := begin(t, t.Context(), b, 100)
	if source.Refute(r) {
		t.Error("another is to be asked")
	}
	mustClose(t, r)
	sourcetest.MustRead(t, b, data, 0, 10)
	if asked, _ := all[1].Asked(); asked != 1 {
		t.Error("the one that was refuted does not rest")
	}
}

// A place that is alone has nobody beside it, nor has one whose others have no ranges.
func TestRefuteTheOnlyOne(t *testing.T) {
	data := sourcetest.Bytes(size)
	b, all, _ := liars(t, data, "a")
	ctx, _ := source.WithRefuted(t.Context())
	r := begin(t, ctx, b, 1)
	if source.Refute(r) {
		t.Error("another is left of one")
	}
	mustClose(t, r)
	if asked, wrong := all[0].Asked(); asked != 1 || wrong != 1 {
		t.Errorf("%d requests, %d refuted", asked, wrong)
	}
	ranged, sequential := of(data), of(data)
	sequential.seq = true
	two := made(t, ranged, sequential)
	r, err := two.ReadRange(ctx, 10, 100)
	if err != nil {
		t.Fatal(err)
	}
	if source.Refute(r) {
		t.Error("one without ranges is left for what is not the start")
	}
	mustClose(t, r)
}

// What was joined of two answers is asked for anew, of one, before anybody is blamed.
func TestRefuteWhatWasJoined(t *testing.T) {
	data := sourcetest.Bytes(size)
	first, second := of(data), &sourcetest.Liar{Blob: mem.New(data), Name: "b"}
	first.after, first.body = 700, errGone
	b := origins.New(source.Identity{Size: size, Validator: "v"})
	if err := errors.Join(b.Add(first, "a"), b.Add(second, "b")); err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, b)
	all := retry.Wrap(b, retry.Policy{First: time.Millisecond})
	ctx, refuted := source.WithRefuted(t.Context())
	r := begin(t, ctx, all, 500)
	if _, err := io.CopyN(io.Discard, r, 1000); err != nil {
		t.Fatal(err)
	}
	if !source.Refute(r) || refuted.Names() != "" {
		t.Errorf("refuted: %q", refuted.Names())
	}
	mustClose(t, r)
	r = begin(t, ctx, all, 500)
	if !source.Refute(r) || refuted.Names() != "b" {
		t.Errorf("refuted: %q", refuted.Names())
	}
	mustClose(t, r)
}

// The answer whose bytes were read is refuted, also when the next one was asked for
// before anybody looked at them.
func TestRefuteWhatBroke(t *testing.T) {
	data := sourcetest.Bytes(size)
	first := &sourcetest.Liar{Blob: mem.New(data), Name: "a"}
	broken := &failing{Blob: first, after: 700, body: errGone}
	second := of(data)
	second.fail(errGone)
	b := origins.New(source.Identity{Size: size, Validator: "v"})
	if err := errors.Join(b.Add(broken, "a"), b.Add(second, "b")); err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, b)
	ctx, _ := source.WithRefuted(t.Context())
	r := begin(t, ctx, retry.Wrap(b, retry.Policy{First: time.Millisecond}), 700)
	broken.fail(errGone)
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, errGone) {
		t.Errorf("behind what came: %v", err)
	}
	if !source.Refute(r) {
		t.Error("the second is not left")
	}
	mustClose(t, r)
}
