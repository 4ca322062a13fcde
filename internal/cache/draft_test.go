package cache

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// draftOf is a draft of 5 blocks: the first and the last half of the fourth hold
// what is returned, the rest was never written.
func draftOf(t *testing.T, r *Root) (*Draft, []byte) {
	t.Helper()
	d, err := r.NewDraft()
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 5*ondemand.BlockSize)
	for _, at := range []int{0, 3*ondemand.BlockSize + ondemand.BlockSize/2} {
		p := want[at : at+ondemand.BlockSize/2]
		for i := range p {
			p[i] = byte(at + i + 1)
		}
		if _, err := d.WriteAt(p, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	return d, want
}

// writtenOfDraft is the blocks of draftOf's that something was written in.
func writtenOfDraft() []ondemand.Range {
	return []ondemand.Range{{Len: ondemand.BlockSize}, {Off: 3 * ondemand.BlockSize, Len: ondemand.BlockSize}}
}

func realRoot(t *testing.T, dir string) *Root {
	t.Helper()
	r, err := OpenRoot(dir, RootOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return r
}

func TestCommittedDraftHasWhatWasWrittenAlsoWhenOpenedAnew(t *testing.T) {
	dir := t.TempDir()
	r := realRoot(t, dir)
	d, want := draftOf(t, r)
	id := ondemand.ObjectID("ab" + string(bytes.Repeat([]byte("0"), 62)))
	if err := d.Commit(Meta{ID: id, Size: int64(len(want))}); err != nil {
		t.Fatal(err)
	}
	if len(r.open) != 0 {
		t.Error("the object was left open")
	}
	o, err := r.Object(id)
	if err != nil {
		t.Fatal(err)
	}
	check := func(o *Object) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := o.File().ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("right %v, %v", bytes.Equal(got, want), err)
		}
		if have := o.presence.Present(ondemand.Range{Len: o.size}); !slices.Equal(have, writtenOfDraft()) {
			t.Errorf("present: %v", have)
		}
	}
	check(o)
	// Where blocks are no smaller than a file system's, nothing else takes space.
	if st, err := os.Stat(o.DataPath()); err != nil || st.Sys().(*syscall.Stat_t).Blocks*512 > 2*ondemand.BlockSize {
		t.Errorf("on disk: %+v, %v", st.Sys(), err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = realRoot(t, dir)
	if o, err = r.Object(id); err != nil {
		t.Fatal(err)
	}
	check(o)
	if !o.Recovered().Clean() {
		t.Errorf("recovery: %+v", o.Recovered())
	}
	rep, err := o.Check(t.Context(), CheckOptions{})
	if err != nil || rep.Corrupt() {
		t.Errorf("check: %+v, %v", rep, err)
	}
}

func TestDraftCompletesWhatIsThere(t *testing.T) {
	r := realRoot(t, t.TempDir())
	id := ondemand.ObjectID("cd" + string(bytes.Repeat([]byte("1"), 62)))
	d, want := draftOf(t, r)
	meta := Meta{ID: id, Size: int64(len(want))}
	o, err := r.Create(meta)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Fill(want[:ondemand.BlockSize], 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(meta); err != nil || o.isClosed() {
		t.Fatalf("closed %v, %v", o.isClosed(), err)
	}
	if have := o.presence.Present(ondemand.Range{Len: o.size}); !slices.Equal(have, writtenOfDraft()) {
		t.Errorf("present: %v", have)
	}
	if err := o.Fill(want, 0); err != nil || !o.Complete() {
		t.Fatal(err)
	}
	d, _ = draftOf(t, r) // and once more, of what is complete and open
	if err := d.Commit(meta); err != nil || o.isClosed() {
		t.Fatalf("closed %v, %v", o.isClosed(), err)
	}
	got := make([]byte, len(want))
	if _, err := o.File().ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("wrong bytes, %v", err)
	}
}

// Commits of one object may meet each other, and one who opens it meanwhile.
func TestCommitClosesNoObjectOfOthers(t *testing.T) {
	r := realRoot(t, t.TempDir())
	id := ondemand.ObjectID("ef" + string(bytes.Repeat([]byte("2"), 62)))
	for range 20 {
		var all sync.WaitGroup
		meta := Meta{ID: id, Size: 5 * ondemand.BlockSize}
		for range 3 {
			d, _ := draftOf(t, r)
			all.Go(func() {
				if err := d.Commit(meta); err != nil {
					t.Error(err)
				}
			})
		}
		o, err := r.Create(meta)
		all.Wait()
		if err != nil || o.isClosed() || o.Present() != 2*ondemand.BlockSize {
			t.Fatalf("%v, closed %v", err, o.isClosed())
		}
		if err := errors.Join(o.Close(), r.Remove(id)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNothingIsLeftOfADraft(t *testing.T) {
	dir := t.TempDir()
	r := realRoot(t, dir)
	left := func() int {
		entries, err := os.ReadDir(filepath.Join(dir, partialDir))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	d, _ := draftOf(t, r)
	if err := errors.Join(d.Discard(), d.Discard()); err != nil || left() != 0 {
		t.Errorf("discarded: %d left, %v", left(), err)
	}
	d, _ = draftOf(t, r)
	if err := d.Commit(Meta{ID: "bad", Size: 1}); err == nil || left() != 0 {
		t.Errorf("committed under a bad name: %v, %d left", err, left())
	}
	if _, _ = draftOf(t, r); left() != 1 {
		t.Errorf("%d drafts", left())
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	realRoot(t, dir)
	if left() != 0 {
		t.Error("a draft survived")
	}
}
