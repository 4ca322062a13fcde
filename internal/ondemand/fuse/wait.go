package fuse

import (
	"sync"
	"syscall"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// pending is a read that waits for what it misses.
type pending struct {
	c *Conn
	q *request

	mu   sync.Mutex
	left int  // parts that are still missing
	over bool // it has been answered, or is about to be
}

// wait enters a read into the table.
func (c *Conn) wait(q *request, lack []part) {
	q.keep()
	p := &pending{c: c, q: q, left: len(lack)}
	c.answers.Add(1)
	c.mu.Lock()
	c.pending[q.unique] = p
	leaving := c.leaving
	c.mu.Unlock()
	if leaving {
		p.done(ondemand.ErrDetached)
		return
	}
	for _, part := range lack {
		c.o.Table.Submit(c.o.Tree.devices[part.device].Object, part.r, ondemand.Reader{Alive: p.alive}, p.done)
	}
}

// alive tells the table whether the reader still waits.
func (p *pending) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.over
}

// done is the table's answer for one part. The first error is the read's.
func (p *pending) done(err error) {
	p.mu.Lock()
	p.left--
	end := !p.over && (err != nil || p.left == 0)
	p.over = p.over || end
	p.mu.Unlock()
	if !end {
		return
	}
	go func() { // the table's answers do not block
		defer p.c.answers.Done()
		p.c.forget(p)
		if err != nil {
			p.c.deny(p.q.unique, ondemand.Errno(err))
			return
		}
		p.c.answer(p.q)
	}()
}

func (c *Conn) forget(p *pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending[p.q.unique] == p {
		delete(c.pending, p.q.unique)
	}
}

// interrupt ends the read that the request q is about: its reader has a signal to take.
// Where no such read waits, it has just been answered, or another goroutine is about to
// let it wait: the kernel is told to ask again, which it does only in the second case.
func (c *Conn) interrupt(q *request) {
	c.mu.Lock()
	p := c.pending[q.interrupted]
	c.mu.Unlock()
	if p == nil {
		c.deny(q.unique, syscall.EAGAIN)
		return
	}
	p.mu.Lock()
	end := !p.over
	p.over = true
	p.mu.Unlock()
	if end {
		defer c.answers.Done()
		c.forget(p)
		c.deny(p.q.unique, syscall.EINTR)
	}
}
