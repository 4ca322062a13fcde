package control

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSocketOfAnotherInstanceIsNotRemoved(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	first, err := Listen(socket)
	ok(t, err)
	name, err := NameOf(socket, first)
	ok(t, err)
	ok(t, os.Remove(socket))
	second, err := Listen(socket)
	ok(t, err)
	ok(t, name.Remove())
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the second one's socket: %v", err)
	}
	name, err = NameOf(socket, second)
	ok(t, err)
	ok(t, name.Remove())
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("a socket's own file is left: %v", err)
	}
	ok(t, name.Remove())
	name, err = NameOf(socket, second)
	ok(t, err)
	ok(t, name.Remove())
	ok(t, first.Close())
	ok(t, second.Close())
}
