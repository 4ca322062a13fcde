package spans

import (
	"bytes"
	"sync"
)

// edges are what was decoded of spans and not asked for, where that is little: of a
// block that lies in two spans one of them has the beginning, and it would have to be
// fetched and decoded again with the other. The zero value is ready.
type edges struct {
	mu    sync.Mutex
	heads map[int64][]byte // by where they begin, which is where their span does
	tails map[int64][]byte // by where they end, which is where their span does
	held  int
}

const (
	// maxEdge is the longest that is held: a block, and the headers of files without
	// data that lie between two with data.
	maxEdge = 32 << 10
	// maxEdges bounds all of a blob.
	maxEdges = 1 << 20
)

// add holds what a span was decoded to and nobody has asked for: [from, off) and
// [end, to) of data, which is all of [from, to).
func (e *edges) add(data []byte, from, off, end int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.heads == nil {
		e.heads, e.tails = make(map[int64][]byte), make(map[int64][]byte)
	}
	e.addLocked(e.heads, from, data[:off-from])
	e.addLocked(e.tails, from+int64(len(data)), data[end-from:])
}

func (e *edges) addLocked(to map[int64][]byte, at int64, data []byte) {
	if len(data) == 0 || len(data) > maxEdge || len(data) <= len(to[at]) {
		return
	}
	e.dropLocked(to, at)
	for _, some := range []map[int64][]byte{e.heads, e.tails} {
		for other := range some { // any: what is given up is fetched again
			if e.held+len(data) <= maxEdges {
				break
			}
			e.dropLocked(some, other)
		}
	}
	to[at] = bytes.Clone(data)
	e.held += len(data)
}

func (e *edges) dropLocked(from map[int64][]byte, at int64) {
	e.held -= len(from[at])
	delete(from, at)
}

// widen is [off, end) with what is held before and after it.
func (e *edges) widen(off, end int64) (int64, int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return off - int64(len(e.tails[off])), end + int64(len(e.heads[end]))
}

// lead is what is held of [off, end) from off on to where the span of off ends, at.
func (e *edges) lead(off, end, at int64) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	tail := e.tails[at]
	begin := at - int64(len(tail))
	if off < begin || off >= at {
		return nil
	}
	return tail[off-begin : min(end, at)-begin]
}

// trail is what is held of [off, end) up to end from where the span of its last byte
// begins, at, or from off.
func (e *edges) trail(off, end, at int64) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	head := e.heads[at]
	if end > at+int64(len(head)) || off >= end {
		return nil
	}
	return head[max(off-at, 0) : end-at]
}
