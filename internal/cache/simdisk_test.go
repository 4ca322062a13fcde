package cache

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

const sector = 512

// simDisk is a disk in memory that loses what was not synced: at a crash each
// write since the last sync of its file, and each change of a directory since
// its sync, is kept, dropped or (writes) torn at sectors, independently and in
// any order.
type simDisk struct {
	rng     *rand.Rand
	root    *simNode
	pending []nameChange
	serial  uint64
	life    int // files opened in an earlier life are dead

	// fail decides whether an operation fails, and how; nil for none.
	fail func(op, name string) error
	// ignoreSync makes syncs of files and directories with these names do
	// nothing: a broken disk, to prove that the tests notice.
	ignoreSync string
}

// simNode is a file or a directory.
type simNode struct {
	dir   bool
	names [2]map[string]*simNode // of a directory: as it is seen, and as it is on disk

	inode    uint64
	size     [2]int64
	blocks   [2]map[int64][]byte // as it is read, and as it is on disk; absent is a hole
	unsynced []simWrite
}

type simWrite struct {
	truncate bool
	off      int64 // or the size
	p        []byte
}

// nameChange is one atomic change of one or two names.
type nameChange struct {
	names [2]simName
	apply func(version int)
}

type simName struct {
	dir  *simNode
	name string
}

func (c nameChange) touches(dir *simNode) bool { return c.names[0].dir == dir || c.names[1].dir == dir }

func (c nameChange) shares(o nameChange) bool {
	for _, a := range c.names {
		if a.dir != nil && (a == o.names[0] || a == o.names[1]) {
			return true
		}
	}
	return false
}

const (
	seen = iota
	onDisk
)

var errDead = errors.New("file of an earlier life")

func newSimDisk(seed uint64) *simDisk {
	d := &simDisk{rng: rand.New(rand.NewPCG(seed, 1))}
	d.root = d.node(true)
	return d
}

func (d *simDisk) node(dir bool) *simNode {
	d.serial++
	n := &simNode{dir: dir, inode: d.serial}
	for v := range 2 {
		n.names[v], n.blocks[v] = map[string]*simNode{}, map[int64][]byte{}
	}
	return n
}

func (d *simDisk) step(op, name string) error {
	if d.fail == nil {
		return nil
	}
	if err := d.fail(op, name); err != nil {
		return fmt.Errorf("%s %s: %w", op, name, err)
	}
	return nil
}

func (d *simDisk) walk(name string) *simNode {
	n := d.root
	for part := range strings.SplitSeq(path.Clean(name), "/") {
		if part == "." {
			continue
		}
		if n = n.names[seen][part]; n == nil {
			return nil
		}
	}
	return n
}

func notExist(name string) error { return fmt.Errorf("%s: %w", name, os.ErrNotExist) }

// change does apply to what is seen, and later, perhaps, to the disk.
func (d *simDisk) change(a, b simName, apply func(version int)) {
	apply(seen)
	d.pending = append(d.pending, nameChange{[2]simName{a, b}, apply})
}

func (d *simDisk) Open(name string) (file, error) {
	if err := d.step("open", name); err != nil {
		return nil, err
	}
	n := d.walk(name)
	if n == nil || n.dir {
		return nil, notExist(name)
	}
	return &simFile{d, n, name, d.life}, nil
}

func (d *simDisk) link(name string, n *simNode) error {
	parent := d.walk(path.Dir(name))
	if parent == nil {
		return notExist(name)
	}
	d.change(simName{parent, path.Base(name)}, simName{}, func(v int) { parent.names[v][path.Base(name)] = n })
	return nil
}

func (d *simDisk) Create(name string, _ os.FileMode) (file, error) {
	if err := d.step("create", name); err != nil {
		return nil, err
	}
	n := d.node(false)
	return &simFile{d, n, name, d.life}, d.link(name, n)
}

func (d *simDisk) Mkdir(name string) (bool, error) {
	if err := d.step("mkdir", name); err != nil {
		return false, err
	}
	if d.walk(name) != nil {
		return false, nil
	}
	return true, d.link(name, d.node(true))
}

func (d *simDisk) Rename(from, to string) error {
	if err := d.step("rename", from); err != nil {
		return err
	}
	a, b, n := d.walk(path.Dir(from)), d.walk(path.Dir(to)), d.walk(from)
	if b == nil || n == nil {
		return notExist(from)
	}
	if old := d.walk(to); old != nil && old.dir && len(old.names[seen]) > 0 {
		return fmt.Errorf("rename to %s: %w", to, syscall.ENOTEMPTY)
	}
	d.change(simName{a, path.Base(from)}, simName{b, path.Base(to)}, func(v int) {
		if a.names[v][path.Base(from)] == n {
			delete(a.names[v], path.Base(from))
		}
		b.names[v][path.Base(to)] = n
	})
	return nil
}

func (d *simDisk) Remove(name string) error {
	if err := d.step("remove", name); err != nil {
		return err
	}
	n := d.walk(name)
	if n == nil {
		return nil
	}
	for _, child := range slices.Sorted(maps.Keys(n.names[seen])) {
		if err := d.Remove(path.Join(name, child)); err != nil {
			return err
		}
	}
	parent := d.walk(path.Dir(name))
	d.change(simName{parent, path.Base(name)}, simName{}, func(v int) { delete(parent.names[v], path.Base(name)) })
	return nil
}

func (d *simDisk) SyncDir(name string) error {
	n := d.walk(name)
	if n == nil {
		return notExist(name)
	}
	if d.ignoreSync == "directories" {
		return nil
	}
	err := d.step("syncdir", name)
	// A change goes to disk after all earlier ones of the same names.
	commit := make([]bool, len(d.pending))
	for i := len(d.pending) - 1; i >= 0; i-- {
		c := d.pending[i]
		commit[i] = c.touches(n) && (err == nil || d.rng.IntN(2) == 0)
		for j := i + 1; j < len(commit); j++ {
			commit[i] = commit[i] || commit[j] && c.shares(d.pending[j])
		}
	}
	var left []nameChange
	for i, c := range d.pending {
		if commit[i] {
			c.apply(onDisk)
		} else {
			left = append(left, c)
		}
	}
	d.pending = left
	return err
}

func (d *simDisk) Names(name string) ([]string, error) {
	if err := d.step("names", name); err != nil {
		return nil, err
	}
	n := d.walk(name)
	if n == nil {
		return nil, nil
	}
	return slices.Sorted(maps.Keys(n.names[seen])), nil
}

// crash is a power cut: afterwards what is seen is what was on disk.
func (d *simDisk) crash() {
	d.life++
	for _, c := range d.pending {
		if d.rng.IntN(2) == 0 {
			c.apply(onDisk)
		}
	}
	d.pending = nil
	d.restart(d.root, map[*simNode]bool{})
}

func (d *simDisk) restart(n *simNode, done map[*simNode]bool) {
	if done[n] {
		return
	}
	done[n] = true
	n.flush(d.rng)
	n.size[seen], n.blocks[seen] = n.size[onDisk], cloneBlocks(n.blocks[onDisk])
	n.names[seen] = maps.Clone(n.names[onDisk])
	for _, name := range slices.Sorted(maps.Keys(n.names[seen])) {
		d.restart(n.names[seen][name], done)
	}
}

func cloneBlocks(m map[int64][]byte) map[int64][]byte {
	out := make(map[int64][]byte, len(m))
	for k, v := range m {
		out[k] = slices.Clone(v)
	}
	return out
}

// flush brings a random part of the unsynced writes to disk, some torn.
func (n *simNode) flush(rng *rand.Rand) {
	w := n.unsynced
	n.unsynced = nil
	rng.Shuffle(len(w), func(i, j int) { w[i], w[j] = w[j], w[i] })
	for _, x := range w {
		switch rng.IntN(3) {
		case 0:
			n.apply(onDisk, x)
		case 1:
			if x.truncate {
				continue
			}
			for i := 0; i < len(x.p); i += sector {
				if rng.IntN(2) == 0 {
					end := min(i+sector, len(x.p))
					n.apply(onDisk, simWrite{off: x.off + int64(i), p: x.p[i:end]})
				}
			}
		}
	}
}

func (n *simNode) apply(v int, w simWrite) {
	if w.truncate {
		n.size[v] = w.off
		for b := range n.blocks[v] {
			if b*block >= w.off {
				delete(n.blocks[v], b)
			} else if left := w.off - b*block; left < block {
				clear(n.blocks[v][b][left:])
			}
		}
		return
	}
	for p, off := w.p, w.off; len(p) > 0; {
		b := n.blocks[v][off/block]
		if b == nil {
			b = make([]byte, block)
			n.blocks[v][off/block] = b
		}
		c := copy(b[off%block:], p)
		p, off = p[c:], off+int64(c)
	}
	n.size[v] = max(n.size[v], w.off+int64(len(w.p)))
}
