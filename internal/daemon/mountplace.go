package daemon

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/mount"
)

// claimDir checks the place and reserves it.
func (i *Instance) claimDir(dir string) (string, error) {
	path, err := directory("mount", dir)
	if err != nil {
		return "", err
	}
	if rel, err := filepath.Rel(i.root.Dir(), path); err == nil && !strings.HasPrefix(rel, "..") {
		return "", refuse(control.ExitUsage, "choose a place outside of it", "mount %s: it lies in the cache root %s", dir, i.root.Dir())
	}
	return path, i.named(i.reserve("mount", path, func() { i.mounts[path] = &mountedImage{} }))
}

// directory is canonical for a place of a mount, which may be a link to a directory, as
// for mount(8).
func directory(verb, path string) (string, error) {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		if st, err := os.Stat(to); err == nil && st.IsDir() {
			return to, nil
		}
	}
	return canonical(verb, path)
}

// reserve has take reserve a path where nothing is. Its error is for named.
func (i *Instance) reserve(verb, path string, take func()) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopping {
		return errStopping()
	}
	if err := i.takenLocked(verb, path); err != nil {
		return err
	}
	take()
	return nil
}

// takenLocked refuses a path where something is already, or is about to be: one
// path has one record. What has left it is none. Some of its errors are for named.
func (i *Instance) takenLocked(verb, path string) error {
	i.noticeLocked()
	m, f := i.mounts[path], i.files[path]
	switch {
	case m != nil && m.leaving:
		return i.setAsideLocked(m)
	case f != nil && f.broken != nil && f.leaving:
		return i.setAsideBrokenLocked(f)
	case f != nil && f.leaving:
		return &inUseError{record: f.record, hint: "let them close it, or choose another place",
			text: verb + " " + path + ": what was attached there is detached, and still in use"}
	case m != nil:
		return refuse(control.ExitInUse, "`lacuna umount` it first", "%s %s: an image is mounted there", verb, path)
	case f != nil && f.broken != nil && f.record.Kind == kindMount:
		return refuse(control.ExitInUse, "`lacuna umount` it first", "%s %s: the image that is mounted there cannot be served: %v", verb, path, f.broken)
	case f != nil && f.broken != nil:
		return refuse(control.ExitInUse, "`lacuna detach` it first", "%s %s: what is there cannot be served: %v", verb, path, f.broken)
	case f != nil:
		return refuse(control.ExitInUse, "`lacuna detach` it first", "%s %s: it is attached already", verb, path)
	case i.bound[path] != nil:
		return refuse(control.ExitInUse, "`lacuna detach` it first", "%s %s: it is bound already", verb, path)
	}
	return nil
}

// setAsideLocked has a mount that is unmounted, and still in use, go by a name of its
// own: its path is free for what comes next, and its users are served on.
func (i *Instance) setAsideLocked(m *mountedImage) error {
	rec, err := i.leftLocked(m.record)
	if err != nil {
		return err
	}
	delete(i.mounts, m.record.key())
	m.record = rec
	i.mounts[rec.key()] = m
	return nil
}

// setAsideBrokenLocked is setAsideLocked for what cannot be served, and is denied on.
func (i *Instance) setAsideBrokenLocked(f *attachedFile) error {
	rec, err := i.leftLocked(f.record)
	if err != nil {
		return err
	}
	delete(i.files, f.record.key())
	f.record = rec
	if f.half != nil {
		f.half.record = rec
	}
	i.files[rec.key()] = f
	return nil
}

// leftLocked has the record go by a name of its own. With an error it is as it was.
func (i *Instance) leftLocked(rec record) (record, error) {
	if rec.Left != "" {
		return rec, nil
	}
	left := rec
	left.Left = "left-" + rand.Text()
	// Who comes between the two finds it twice, and never not at all.
	if err := i.records.put(left); err != nil {
		return rec, err
	}
	if err := i.records.remove(rec.key()); err != nil {
		return rec, errors.Join(err, i.records.remove(left.key()))
	}
	return left, nil
}

// needsDirectory tells whether the directory is absent; one that is there must
// be empty, and nothing mounted on it.
func needsDirectory(path string) (bool, error) {
	mounts, err := mount.List()
	if err != nil {
		return false, err
	}
	if _, mounted := mount.At(mounts, path); mounted {
		return false, refuse(control.ExitInUse, "umount it first, or choose another directory", "mount %s: something is mounted there", path)
	}
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("mount %s: %w", path, bare(err))
	}
	if !st.IsDir() {
		return false, refuse(control.ExitUsage, "choose another name", "mount %s: it is not a directory", path)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return false, fmt.Errorf("mount %s: %w", path, bare(err))
	}
	if len(entries) > 0 {
		return false, refuse(control.ExitUsage, "choose an empty directory or a name that is free", "mount %s: the directory is not empty", path)
	}
	return false, nil
}
