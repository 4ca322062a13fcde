package fuse

import (
	"encoding/binary"
	"fmt"
	"sync"
	"syscall"
)

// Requests as far as they are looked into here; the rest is go-fuse's
// (include/uapi/linux/fuse.h, protocol 7.45).
const (
	headerSize    = 40 // fuse_in_header
	outHeaderSize = 16 // fuse_out_header

	opReadlink    = 5
	opRead        = 15
	opGetXattr    = 22
	opListXattr   = 23
	opInit        = 26
	opReadDir     = 28
	opInterrupt   = 36
	opReadDirPlus = 44

	notifyResend = 7 // FUSE_NOTIFY_RESEND
)

// request is a request of the kernel.
type request struct {
	raw    []byte
	opcode uint32
	unique uint64
	node   uint64
	offset int64  // of a read
	size   uint32 // at most of what is answered behind the answer's structures

	interrupted uint64 // the number of the request that an INTERRUPT is about
}

// parse looks into a request as it was read. It keeps raw.
func parse(raw []byte) (*request, error) {
	ne := binary.NativeEndian
	if len(raw) < headerSize || uint64(ne.Uint32(raw)) != uint64(len(raw)) {
		return nil, fmt.Errorf("read a FUSE request: %d bytes are none", len(raw))
	}
	q := &request{raw: raw, opcode: ne.Uint32(raw[4:]), unique: ne.Uint64(raw[8:]), node: ne.Uint64(raw[16:])}
	body := raw[headerSize:]
	want := 0
	switch q.opcode {
	case opRead, opReadDir, opReadDirPlus:
		if want = 20; len(body) >= want { // fuse_read_in
			q.offset, q.size = int64(ne.Uint64(body[8:])), ne.Uint32(body[16:])
		}
	case opGetXattr, opListXattr:
		if want = 4; len(body) >= want { // fuse_getxattr_in
			q.size = ne.Uint32(body)
		}
	case opInterrupt:
		if want = 8; len(body) >= want { // fuse_interrupt_in
			q.interrupted = ne.Uint64(body)
		}
	case opReadlink:
		q.size = 4096
	}
	if len(body) < want || q.size > maxRead || q.offset < 0 {
		return nil, fmt.Errorf("read a FUSE request: request %d of %d bytes asks for %d at %d", q.opcode, len(raw), q.size, q.offset)
	}
	return q, nil
}

// keep makes the request outlive the buffer that it was read into.
func (q *request) keep() { q.raw = append([]byte(nil), q.raw...) }

// denial answers a request with an error.
func denial(unique uint64, errno syscall.Errno) []byte {
	p := make([]byte, outHeaderSize)
	binary.NativeEndian.PutUint32(p, outHeaderSize)
	binary.NativeEndian.PutUint32(p[4:], uint32(-int32(errno)))
	binary.NativeEndian.PutUint64(p[8:], unique)
	return p
}

// resendNotice asks the kernel for what was taken and not answered.
func resendNotice() []byte {
	p := make([]byte, outHeaderSize)
	binary.NativeEndian.PutUint32(p, outHeaderSize)
	binary.NativeEndian.PutUint32(p[4:], notifyResend)
	return p
}

// buffers are kept room for answers: small ones, and the longest.
type buffers struct{ small, large sync.Pool }

const smallAnswer = 8 << 10

// get returns room for an answer with size bytes behind its structures, and what to do
// with it afterwards.
func (b *buffers) get(size uint32) (p []byte, free func()) {
	pool, length := &b.small, smallAnswer
	if size > smallAnswer {
		pool, length = &b.large, maxRead
	}
	kept, ok := pool.Get().(*[]byte)
	if !ok {
		fresh := make([]byte, length+room)
		kept = &fresh
	}
	return *kept, func() { pool.Put(kept) }
}
