// Package proto is the devnode's wire format, the only copy of it: the record
// that carries a request to the daemon, the text commands that come back, and
// the text that answers them. The server and the public client both use it. It
// does no input or output.
//
// The record and the commands are those of the misc device cachefiles_ondemand
// (Linux patch series "fscache,erofs: fscache-based on-demand read semantics",
// v3 of February 2022); docs/devnode.md lists what is added and what differs.
//
// One message of the SOCK_SEQPACKET socket is one record, one command or one
// answer. A record is RecordSize bytes long and an answer always shorter, so
// that a daemon tells them apart by the length.
package proto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Layout of a record, native endian:
//
//	0   u64       id
//	8   u64       off
//	16  u64       len
//	24  char[255] path, ended by NUL, the rest zero
//	279 u8        zero
const (
	// RecordSize is sizeof of the C structure, with its padding.
	RecordSize = 280
	// MaxPath is the longest path that leaves room for its NUL.
	MaxPath  = 254
	pathFrom = 24
	pathRoom = 255
)

// ErrRecord tells of a record that does not have the documented layout.
var ErrRecord = errors.New("malformed record")

// Record is one request: bytes [Off, Off+Len) of the file called Path in the
// bound directory are wanted.
type Record struct {
	ID, Off, Len uint64
	// Path is a leaf name: 1 to MaxPath bytes, without slash and NUL.
	Path string
}

// check says what keeps r from being a record, or nothing.
func (r Record) check() string {
	switch {
	case r.Len == 0:
		return "empty range"
	case r.Off > math.MaxInt64 || r.Len > math.MaxInt64-r.Off:
		return "range beyond the largest file"
	case r.Path == "" || r.Path == "." || r.Path == "..":
		return "path is no leaf name"
	case len(r.Path) > MaxPath:
		return "path too long"
	case strings.ContainsAny(r.Path, "/\x00"):
		return "path is no leaf name"
	}
	return ""
}

// Encode is the record as it is sent.
func (r Record) Encode() ([]byte, error) {
	if why := r.check(); why != "" {
		return nil, fmt.Errorf("%w: %s", ErrRecord, why)
	}
	b := make([]byte, RecordSize)
	ne := binary.NativeEndian
	ne.PutUint64(b, r.ID)
	ne.PutUint64(b[8:], r.Off)
	ne.PutUint64(b[16:], r.Len)
	copy(b[pathFrom:pathFrom+MaxPath], r.Path)
	return b, nil
}

// ParseRecord reads what Encode wrote, and nothing else.
func ParseRecord(b []byte) (Record, error) {
	if len(b) != RecordSize {
		return Record{}, fmt.Errorf("%w: %d bytes", ErrRecord, len(b))
	}
	ne := binary.NativeEndian
	name := string(b[pathFrom : pathFrom+pathRoom])
	name, rest, ended := strings.Cut(name, "\x00")
	if !ended || strings.Trim(rest, "\x00") != "" || b[RecordSize-1] != 0 {
		return Record{}, fmt.Errorf("%w: path not ended, or bytes behind it", ErrRecord)
	}
	r := Record{ID: ne.Uint64(b), Off: ne.Uint64(b[8:]), Len: ne.Uint64(b[16:]), Path: name}
	if why := r.check(); why != "" {
		return Record{}, fmt.Errorf("%w: %s", ErrRecord, why)
	}
	return r, nil
}
