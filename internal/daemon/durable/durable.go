// Package durable replaces files so that a crash leaves the old one or the new one,
// whole.
package durable

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Prefix is how the name of a file begins that is being written. A crash may leave
// one beside the file that it was to be.
const Prefix = ".new-"

// Replace writes a file under another name, makes it durable, and gives it its own
// name, durably. When it fails nothing of it is left, and what was there is.
func Replace(name string, write func(io.Writer) error) error {
	if err := replace(name, write); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func replace(name string, write func(io.Writer) error) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(name), Prefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if e := os.Remove(tmp.Name()); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}()
	buffered := bufio.NewWriterSize(tmp, 64<<10)
	err = write(buffered)
	if err == nil {
		err = errors.Join(buffered.Flush(), tmp.Sync())
	}
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), name); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(name))
}

// ReplaceBytes is Replace with the content at hand.
func ReplaceBytes(name string, b []byte) error {
	return Replace(name, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
