package devnode

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/devnode"
	"github.com/lacunafs/lacuna/internal/ondemand"
)

// The cases of the device's acceptance list that mean something for this
// devnode, by their numbers there; docs/devnode.md has the whole list.

// answer fills the next n requests rightly.
func (b *bound) answer(t *testing.T, c *raw, n int) {
	t.Helper()
	for range n {
		r := c.record()
		b.pour(t, r)
		c.say("done %d", r.ID)
	}
}

func TestAcceptance01DataPath(t *testing.T) {
	sizes := map[string]int{"plain": 8 * 4096, "tail": 3*4096 + 77, "inline": 77, "device1": 1 << 20, "device2": 1<<20 + 1}
	b := serve(t, sizes)
	c := b.bind(t)
	for leaf, size := range sizes {
		fill := b.miss(t, leaf, 0, int64(size))
		b.answer(t, c, 1)
		check(t, result(t, fill))
		b.same(t, leaf, 0, int64(size))
		if !b.object(t, leaf).Complete() {
			t.Errorf("%s is not complete", leaf)
		}
	}
}

func TestAcceptance02RefusedDaemonLeavesNothingBehind(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	for range 3 {
		c := connect(t, b.socket)
		c.refused(syscall.EINVAL, "dir %s", b.source)
		c.say("tag unlucky")
		c.refused(syscall.EINVAL, "bind")
		check(t, c.Close())
	}
	c := b.bind(t)
	if st := b.Status(); st.Tag != "test" {
		t.Errorf("tag %q", st.Tag)
	}
	fill := b.miss(t, "blob", 0, 4096)
	b.answer(t, c, 1)
	check(t, result(t, fill))
}

func TestAcceptance03NextDaemonMayHaveAnotherTag(t *testing.T) {
	b := serve(t, map[string]int{"blob": 8192})
	for i, tag := range []string{"first", "second"} {
		c, err := devnode.Dial(b.socket)
		check(t, err)
		check(t, c.Bind(b.dir, tag))
		if st := b.Status(); st.Tag != tag {
			t.Errorf("tag %q", st.Tag)
		}
		fill := b.miss(t, "blob", int64(i)*4096, 4096)
		req, err := c.Next(t.Context())
		check(t, err)
		f, err := c.File(req.ID)
		check(t, err)
		_, err = f.WriteAt(content("blob", 8192)[req.Off:req.Off+req.Len], req.Off)
		check(t, errors.Join(err, f.Close(), c.Done(req.ID), result(t, fill), c.Close()))
	}
	b.same(t, "blob", 0, 8192)
}

func TestAcceptance04DescriptorOnlyOfAHandedOutRequest(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c := connect(t, b.socket)
	c.refused(syscall.EINVAL, "fd 1")
	c.say("dir %s", b.dir)
	c.say("bind")
	c.refused(syscall.EINVAL, "fd 1")
}

func TestAcceptance05MisbehavingDaemonThenRecovery(t *testing.T) {
	b := serve(t, map[string]int{"blob": 16384})
	c := b.bind(t)
	lied := b.miss(t, "blob", 0, 4096)
	r := c.record()
	c.refused(syscall.EINVAL, "done")
	c.refused(syscall.EINVAL, "done %d", r.ID+7)
	c.refused(syscall.EINVAL, "\xff\xfe\x00\x01")
	c.refused(syscall.ENODATA, "done %d", r.ID)
	if err := result(t, lied); !errors.Is(err, ondemand.ErrNotFilled) {
		t.Error(err)
	}
	left := b.miss(t, "blob", 4096, 4096)
	c.record()
	check(t, c.Close())
	if err := result(t, left); !errors.Is(err, ondemand.ErrFlushed) {
		t.Error(err)
	}
	c = b.bind(t)
	fill := b.miss(t, "blob", 0, 16384)
	b.answer(t, c, 1)
	check(t, result(t, fill))
	b.same(t, "blob", 0, 16384)
}

func TestAcceptance06DescriptorClosedEarly(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c, err := devnode.Dial(b.socket)
	check(t, err)
	defer c.Close()
	check(t, c.Bind(b.dir, ""))
	fill := b.miss(t, "blob", 0, 4096)
	req, err := c.Next(t.Context())
	check(t, err)
	f, err := c.File(req.ID)
	check(t, err)
	check(t, f.Close())
	if err := c.Done(req.ID); !errors.Is(err, syscall.ENODATA) {
		t.Errorf("done: %v", err)
	}
	if err := result(t, fill); ondemand.Errno(err) != syscall.EIO {
		t.Error(err)
	}
}

func TestAcceptance07DoneWithoutData(t *testing.T) {
	for name, write := range map[string]func(*os.File) error{
		"nothing":       func(*os.File) error { return nil },
		"first block":   func(f *os.File) error { _, err := f.WriteAt(make([]byte, 4096), 4096); return err },
		"last block":    func(f *os.File) error { _, err := f.WriteAt(make([]byte, 4096), 3*4096); return err },
		"other place":   func(f *os.File) error { _, err := f.WriteAt(make([]byte, 4096), 0); return err },
		"file cut":      func(f *os.File) error { return f.Truncate(4096) },
		"file cut in":   func(f *os.File) error { return f.Truncate(8192) },
		"only reserved": func(f *os.File) error { return syscall.Fallocate(int(f.Fd()), 0, 4096, 3*4096) },
	} {
		t.Run(name, func(t *testing.T) {
			b := serve(t, map[string]int{"blob": 5 * 4096})
			c := b.bind(t)
			fill := b.miss(t, "blob", 4096, 3*4096)
			r := c.record()
			f, err := os.OpenFile(filepath.Join(b.dir, "blob"), os.O_RDWR, 0)
			check(t, err)
			check(t, errors.Join(write(f), f.Close()))
			c.refused(syscall.ENODATA, "done %d", r.ID)
			err = result(t, fill)
			if !errors.Is(err, ondemand.ErrNotFilled) || ondemand.Errno(err) != syscall.EIO {
				t.Error(err)
			}
			if b.object(t, "blob").Present() != 0 {
				t.Error("something is present")
			}
			if st := b.Status(); st.Failed != 1 || st.Done != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

func TestAcceptance10SeekOnTheDescriptor(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4 * 4096})
	c, err := devnode.Dial(b.socket)
	check(t, err)
	defer c.Close()
	check(t, c.Bind(b.dir, ""))
	fill := b.miss(t, "blob", 4096, 4096)
	req, err := c.Next(t.Context())
	check(t, err)
	f, err := c.File(req.ID)
	check(t, err)
	defer f.Close()
	if end, err := f.Seek(0, 2); end != 4*4096 || err != nil {
		t.Errorf("end at %d, %v", end, err)
	}
	_, err = f.Seek(req.Off, 0)
	check(t, err)
	_, err = f.Write(content("blob", 4*4096)[4096:8192])
	check(t, err)
	const seekHole = 4 // SEEK_HOLE, include/uapi/linux/fs.h
	if hole, err := f.Seek(req.Off, seekHole); hole != 8192 || err != nil {
		t.Errorf("hole at %d, %v", hole, err)
	}
	check(t, c.Done(req.ID))
	check(t, result(t, fill))
	b.same(t, "blob", 4096, 4096)
}

func TestAcceptance11ConnectionClosedBeforeTheDescriptor(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c, err := devnode.Dial(b.socket)
	check(t, err)
	check(t, c.Bind(b.dir, ""))
	fill := b.miss(t, "blob", 0, 4096)
	req, err := c.Next(t.Context())
	check(t, err)
	f, err := c.File(req.ID)
	check(t, err)
	check(t, c.Close())
	if err := result(t, fill); !errors.Is(err, ondemand.ErrFlushed) {
		t.Error(err)
	}
	_, err = f.WriteAt(make([]byte, 4096), 0)
	check(t, errors.Join(err, f.Close()))
	if b.object(t, "blob").Has(ondemand.Range{Len: 1}) {
		t.Error("present without done")
	}
}

func TestAcceptance12DaemonThatNeverAnswers(t *testing.T) {
	b := serve(t, map[string]int{"blob": 1 << 20})
	c := b.bind(t)
	var fills []<-chan error
	for i := range int64(64) {
		fills = append(fills, b.miss(t, "blob", i*4096, 4096))
	}
	for range fills {
		c.record()
	}
	for _, fill := range fills {
		select {
		case err := <-fill:
			t.Fatal("ended by itself: ", err)
		default:
		}
	}
	check(t, c.Close())
	for _, fill := range fills {
		if err := result(t, fill); ondemand.Errno(err) != syscall.EIO {
			t.Error(err)
		}
	}
}

func TestAcceptance13NoCulling(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c := b.bind(t)
	c.refused(syscall.EOPNOTSUPP, "inuse blob")
	c.refused(syscall.EOPNOTSUPP, "cull blob")
}

func TestAcceptance14SeveralDevnodesAtOnce(t *testing.T) {
	one, two := serve(t, map[string]int{"blob": 8192}), serve(t, map[string]int{"blob": 8192, "more": 4096})
	c1, c2 := one.bind(t), two.bind(t)
	c1.refused(syscall.EBUSY, "bind")
	fill1, fill2 := one.miss(t, "blob", 0, 4096), two.miss(t, "blob", 0, 8192)
	two.answer(t, c2, 1)
	check(t, result(t, fill2))
	check(t, c2.Close())
	one.answer(t, c1, 1)
	check(t, result(t, fill1))
	one.same(t, "blob", 0, 4096)
	two.same(t, "blob", 0, 8192)
}

func TestAcceptance15EmptyTagRefused(t *testing.T) {
	b := serve(t, map[string]int{"blob": 4096})
	c := connect(t, b.socket)
	c.refused(syscall.EINVAL, "tag")
	c.refused(syscall.EINVAL, "tag ")
	c.say("tag x")
	c.sync()
}
