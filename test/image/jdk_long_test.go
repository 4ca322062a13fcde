//go:build long

package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// mapped are the bytes of a file, which are not copied into memory.
func mapped(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Munmap(data); err != nil {
			t.Error(err)
		}
	})
	return data
}

// jdkTars are the layers of a Debian with python3, a Go toolchain and a JDK.
func jdkTars(t testing.TB) (tars [][]byte) {
	t.Helper()
	root, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(filepath.Dir(string(root)), "scripts", "debian.sh"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("debian.sh: %v", err)
	}
	names, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "*.tar"))
	if err != nil || len(names) != len(compressors) {
		t.Fatalf("%d layers, want one for each of %d compressors: %v", len(names), len(compressors), err)
	}
	for _, name := range names {
		tars = append(tars, mapped(t, name))
	}
	return tars
}

// A real image of over 200 MB is read right by its indices, in files and in any ranges.
func TestJDKReadAtRandom(t *testing.T) {
	tars := jdkTars(t)
	readIndexed(t, tars, 200_000_000, 512<<10, 10_000, "--min-layer-size", "0B")
}
