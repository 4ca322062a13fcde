package devnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"sync"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/sys"
)

// The record is a memfd with the presence of every file of a Dir. It outlives
// the process where a keeper holds it, and not the machine. Native endian:
//
//	header  u64 magic, u64 version, u64 number of files
//	file    u64 dev, u64 ino, u64 hash of the leaf name, u64 size, u64 offset of its map
//	map     one bit a block, least significant first; 1: present
//
// Bits are only ever set, after the data is in the file. Pages of the memfd
// exist only where a bit is set, so sparse files cost little.
const (
	recordMagic   = 0x6c61636e64657631 // "lacndev1"
	recordVersion = 1
	headerLen     = 24
	entryLen      = 40
)

// ErrRecord: an inherited record is not one, or not this directory's.
var ErrRecord = errors.New("malformed presence record")

// record is the mapped memfd.
type record struct {
	fd  *sys.FD
	mem *sys.Mapping
	mu  sync.Mutex // held to change a byte
}

// bitmap is one file's part of it.
type bitmap struct {
	mu   *sync.Mutex
	bits []byte
}

// set records the whole blocks [r.Off, r.End()), the last perhaps cut by the end.
func (m bitmap) set(r ondemand.Range) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := ondemand.BlockCount(r.End())
	for b := r.Off / ondemand.BlockSize; b < last; {
		if b%8 == 0 && b+8 <= last {
			m.bits[b/8] = 0xff
			b += 8
			continue
		}
		m.bits[b/8] |= 1 << (b % 8)
		b++
	}
}

// load copies what is recorded into p, a run at a time.
func (m bitmap) load(p *ondemand.Presence) {
	blocks := ondemand.BlockCount(p.Size())
	for b := m.next(0, blocks, true); b < blocks; {
		end := m.next(b, blocks, false)
		off := b * ondemand.BlockSize
		p.Set(ondemand.Range{Off: off, Len: min(end*ondemand.BlockSize, p.Size()) - off})
		b = m.next(end, blocks, true)
	}
}

// next is the first block at or behind b whose bit is want, or blocks.
func (m bitmap) next(b, blocks int64, want bool) int64 {
	skip := byte(0xff) // a byte without any bit that is wanted
	if want {
		skip = 0
	}
	for b < blocks {
		switch bits := m.bits[b/8]; {
		case bits == skip:
			b = (b/8 + 1) * 8
		case bits&(1<<(b%8)) != 0 == want:
			return b
		default:
			b++
		}
	}
	return blocks
}

func bitmapLen(size int64) int64 { return (ondemand.BlockCount(size) + 7) / 8 }

// loadPresence makes the record, and fills it from the files' holes; or takes
// the presence out of the inherited one.
func (d *Dir) loadPresence(inherited *sys.FD) error {
	if inherited != nil {
		return d.inherit(inherited)
	}
	total := int64(headerLen + entryLen*len(d.objects))
	for _, o := range d.objects {
		total += bitmapLen(o.Size())
	}
	fd, err := sys.Memfd("lacuna-presence", total)
	if err != nil {
		return err
	}
	if err := d.mapRecord(fd); err != nil {
		return err
	}
	ne, mem := binary.NativeEndian, d.record.mem.Bytes
	ne.PutUint64(mem, recordMagic)
	ne.PutUint64(mem[8:], recordVersion)
	ne.PutUint64(mem[16:], uint64(len(d.objects)))
	at := int64(headerLen + entryLen*len(d.objects))
	for i, o := range d.objects {
		entry := mem[headerLen+entryLen*i:]
		ne.PutUint64(entry, o.inode.Dev)
		ne.PutUint64(entry[8:], o.inode.Ino)
		ne.PutUint64(entry[16:], hashName(o.leaf))
		ne.PutUint64(entry[24:], uint64(o.Size()))
		ne.PutUint64(entry[32:], uint64(at))
		o.record = bitmap{&d.record.mu, mem[at : at+bitmapLen(o.Size())]}
		at += bitmapLen(o.Size())
		if err := o.readHoles(); err != nil {
			return fmt.Errorf("holes of %s: %w", o.leaf, err)
		}
	}
	return nil
}

func (d *Dir) mapRecord(fd *sys.FD) error {
	mem, err := sys.MapShared(fd)
	if err != nil {
		return errors.Join(err, fd.Close())
	}
	d.record = &record{fd: fd, mem: mem}
	return nil
}

func (r *record) close() error { return errors.Join(r.mem.Close(), r.fd.Close()) }

func hashName(leaf string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(leaf)) //nolint:errcheck // hash.Hash: never fails
	return h.Sum64()
}

// fileKey is how a file is found again.
type fileKey struct{ dev, ino, name, size uint64 }

// inherit takes over the record of an earlier incarnation, and keeps the files
// that are in it.
func (d *Dir) inherit(fd *sys.FD) error {
	if err := d.mapRecord(fd); err != nil {
		return err
	}
	maps, err := parseRecord(d.record.mem.Bytes)
	if err != nil {
		return err
	}
	kept := d.objects[:0]
	for _, o := range d.objects {
		bits, known := maps[fileKey{o.inode.Dev, o.inode.Ino, hashName(o.leaf), uint64(o.Size())}]
		if !known {
			d.skip(o.leaf, "has come or changed since the directory was bound")
			delete(d.byID, o.id)
			if err := o.file.Close(); err != nil {
				return err
			}
			continue
		}
		kept = append(kept, o)
		o.record = bitmap{&d.record.mu, bits}
		o.record.load(o.presence)
	}
	d.objects = kept
	return nil
}

// parseRecord finds each file's map.
func parseRecord(mem []byte) (map[fileKey][]byte, error) {
	ne := binary.NativeEndian
	if len(mem) < headerLen || ne.Uint64(mem) != recordMagic || ne.Uint64(mem[8:]) != recordVersion {
		return nil, fmt.Errorf("%w: no header of version %d", ErrRecord, recordVersion)
	}
	n := ne.Uint64(mem[16:])
	if n > uint64(len(mem)-headerLen)/entryLen {
		return nil, fmt.Errorf("%w: %d files in %d bytes", ErrRecord, n, len(mem))
	}
	maps := map[fileKey][]byte{}
	for i := range n {
		entry := mem[headerLen+entryLen*i:]
		key := fileKey{ne.Uint64(entry), ne.Uint64(entry[8:]), ne.Uint64(entry[16:]), ne.Uint64(entry[24:])}
		if key.size > math.MaxInt64 {
			return nil, fmt.Errorf("%w: file of %d bytes", ErrRecord, key.size)
		}
		at, length := ne.Uint64(entry[32:]), uint64(bitmapLen(int64(key.size)))
		if at > uint64(len(mem)) || length > uint64(len(mem))-at {
			return nil, fmt.Errorf("%w: map beyond the end", ErrRecord)
		}
		maps[key] = mem[at : at+length]
	}
	return maps, nil
}
