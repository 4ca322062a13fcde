package trace_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/mem"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
	"github.com/lacunafs/lacuna/internal/source/trace"
)

func TestSuite(t *testing.T) {
	var mu sync.Mutex
	var ended, bytes int64
	tally := trace.NewTally(func(r trace.Request) {
		mu.Lock()
		defer mu.Unlock()
		ended++
		bytes += r.Bytes
	})
	sourcetest.Run(t, func(_ *testing.T, data []byte) source.Blob { return tally.Wrap(mem.New(data)) })
	if s := tally.Snapshot(); s.Open != 0 || s.Requests != ended || s.Bytes < bytes || s.Requests < 2000 {
		t.Fatalf("%d ended, %d bytes, snapshot %+v", ended, bytes, s)
	}
}

func TestRequestsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log []trace.Request
		tally := trace.NewTally(func(r trace.Request) { log = append(log, r) })
		failing := sourcetest.FailNth(mem.New(make([]byte, 1000)), 3, nil)
		b := tally.Wrap(failing)
		r, err := b.ReadRange(t.Context(), 10, 500)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Second)
		for range 2 { // the second fails half-way
			if _, err = r.Read(make([]byte, 100)); err != nil {
				break
			}
			<-time.After(time.Second)
		}
		if !errors.Is(err, sourcetest.ErrInjected) {
			t.Fatal(err)
		}
		if s := tally.Snapshot(); s.Open != 1 {
			t.Fatalf("before close: %+v", s)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		want := trace.Request{Off: 10, N: 500, Bytes: 150, FirstByte: time.Second, Duration: 2 * time.Second, Err: sourcetest.ErrInjected}
		if log[0] != want {
			t.Fatalf("got %+v", log[0])
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.ReadRange(ctx, 0, 1); err == nil {
			t.Fatal("a cancelled read")
		}
		s := tally.Snapshot()
		p50 := s.FirstByte.Quantile(0.5)
		if s.Requests != 2 || s.Open != 0 || s.Bytes != 150 || s.Failed != 1 || s.Cancelled != 1 || s.FirstByte.N() != 1 ||
			p50 < time.Second || p50 > 5*time.Second/4 {
			t.Fatalf("snapshot: p50 %v, %+v", p50, s)
		}
	})
}
