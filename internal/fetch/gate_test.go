package fetch

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestGateAdmitsDemandsFirst(t *testing.T) {
	g := newGate(4, 2)
	var order []string
	ask := func(name string, n int64, ahead bool) *ticket {
		tk := &ticket{n: n, ahead: ahead, start: func() { order = append(order, name) }}
		if g.enqueue(tk) {
			tk.start()
		}
		return tk
	}
	a := ask("ahead 1", 2, true)
	ask("ahead 2", 1, true) // over what read-ahead may have
	d := ask("demand 1", 2, false)
	large := ask("demand 2", 3, false)
	small := ask("demand 3", 1, false) // behind the large one
	if g.tryAhead(1) != nil {
		t.Error("read-ahead got past those who wait")
	}
	g.release(a)
	g.release(d)
	if want := []string{"ahead 1", "demand 1", "demand 2", "demand 3"}; !slices.Equal(order, want) {
		t.Errorf("order %v", order)
	}
	g.release(small)
	if order[len(order)-1] != "ahead 2" {
		t.Errorf("order %v", order)
	}
	ask("demand 4", 4, false)
	last := ask("demand 5", 1, false)
	if !g.withdraw(last) || g.withdraw(last) || g.withdraw(large) {
		t.Error("withdraw: wrong answers")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.acquire(ctx, 4, true); !errors.Is(err, context.Canceled) {
		t.Errorf("acquire: %v", err)
	}
	if g.used != 4 || g.peak != 4 || g.demands.Len() != 1 || g.aheads.Len() != 0 {
		t.Errorf("%d in use, %d and %d wait", g.used, g.demands.Len(), g.aheads.Len())
	}
}

func TestWithdrawingALargeTicketAdmitsSmallerOnes(t *testing.T) {
	g := newGate(4, 2)
	first := &ticket{n: 2, start: func() {}}
	large := &ticket{n: 3, start: func() { t.Error("withdrawn and admitted") }}
	admitted := false
	if !g.enqueue(first) || g.enqueue(large) || g.enqueue(&ticket{n: 1, start: func() { admitted = true }}) {
		t.Error("not admitted in order")
	}
	if !g.withdraw(large) || !admitted {
		t.Error("the small ticket waits for nothing")
	}
}

// A ticket that waits as read-ahead is admitted as a demand once it is one, and
// only what was not admitted as read-ahead yields.
func TestGateCountsTicketsThatWait(t *testing.T) {
	g := newGate(3, 1)
	admitted := make(map[*ticket]bool)
	ask := func(ahead bool) *ticket {
		tk := &ticket{n: 1, ahead: ahead}
		tk.start = func() { admitted[tk] = true }
		if g.enqueue(tk) {
			tk.start()
		}
		return tk
	}
	share, waits, demand := ask(true), ask(true), ask(false)
	if !admitted[share] || admitted[waits] || !admitted[demand] {
		t.Fatal("the share of read-ahead is not kept")
	}
	g.count(waits, false)
	if !admitted[waits] {
		t.Fatal("a demand waits although there is room")
	}
	last := ask(false)
	g.count(last, true)
	g.count(last, false)
	g.count(demand, true)
	if g.yield(share) || g.yield(waits) || !g.yield(demand) || g.yield(demand) {
		t.Error("yield: wrong answers")
	}
	g.release(demand)
	if !admitted[last] {
		t.Error("what was yielded went to nobody")
	}
	for _, tk := range []*ticket{share, waits, last} {
		g.release(tk)
	}
	if g.used != 0 || g.ahead != 0 || g.leaving != 0 {
		t.Errorf("%d, %d and %d are left", g.used, g.ahead, g.leaving)
	}
}
