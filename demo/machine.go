package main

import (
	"archive/tar"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Programs that the image has in any case, where this machine has them.
var wanted = []string{"bash", "sh", "ls", "wc", "cat", "env", "find", "grep", "sed", "sort", "head", "uname", "perl", "python3"}

// all is no limit.
const all = 1 << 40

// small is how large another program may be.
const small = 1 << 20

// machine makes the layers of a root filesystem of this machine's own files.
func machine(ctx context.Context, t *tree, size int64) error {
	t.layer("programs and libraries")
	if err := t.top("/"); err != nil {
		return err
	}
	if err := t.addAll(ctx, "/etc", "etc", size/20, nothing); err != nil {
		return err
	}
	if _, err := t.follow("/etc/os-release"); err != nil {
		return err
	}
	for _, name := range wanted {
		if err := t.program(filepath.Join("/usr/bin", name)); err != nil {
			return err
		}
	}
	all, err := os.ReadDir("/usr/bin")
	if err != nil {
		return err
	}
	for _, d := range all {
		name := filepath.Join("/usr/bin", d.Name())
		info, err := os.Stat(name)
		if err != nil || info.Size() > small || t.size > size*3/10 || !t.hasNeedsOf(name) {
			continue
		}
		if err := errors.Join(ctx.Err(), t.program(name)); err != nil {
			return err
		}
	}
	t.layer("perl and python")
	return t.languages(ctx)
}

// top adds the directories at the top of a root filesystem, the links there
// (such as /bin, see file-hierarchy(7)), and devices that programs expect.
func (t *tree) top(root string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if err := t.add(filepath.Join(root, name), name); err != nil {
			return err
		}
	}
	for name, perm := range map[string]int64{"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "root": 0o700, "tmp": 0o1777} {
		t.make(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: perm}, "")
	}
	// The numbers are Linux's (Documentation/admin-guide/devices.txt).
	for name, minor := range map[string]int64{"null": 3, "zero": 5, "urandom": 9} {
		t.make(tar.Header{Typeflag: tar.TypeChar, Name: "dev/" + name, Mode: 0o666, Devmajor: 1, Devminor: minor}, "")
	}
	return nil
}

// follow adds what lies at path, and where it is a symbolic link, what that
// leads to. It returns where the file is; empty: it is not there.
func (t *tree) follow(path string) (string, error) {
	for range 20 {
		// A package may list /bin/x where /bin is a link.
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, filepath.Base(path))
		if err := t.add(path, strings.TrimPrefix(path, "/")); err != nil {
			return "", err
		}
		target, err := os.Readlink(path)
		if err != nil {
			if !t.names[strings.TrimPrefix(path, "/")] {
				return "", nil
			}
			return path, nil
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		path = target
	}
	return "", fmt.Errorf("%s: too many links", path)
}

// program adds a program or a library with the libraries that it needs.
func (t *tree) program(path string) error {
	file, err := t.follow(path)
	if err != nil || file == "" || t.looked[file] {
		return err
	}
	t.looked[file] = true
	return t.needs(file)
}

// needs adds what the program or library needs.
func (t *tree) needs(file string) error {
	names, err := needed(file)
	if err != nil {
		return err
	}
	for _, name := range names {
		if lib := library(name); lib != "" {
			if err := t.program(lib); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasNeedsOf tells whether all is there that the program needs.
func (t *tree) hasNeedsOf(file string) bool {
	names, err := needed(file)
	return err == nil && !slices.ContainsFunc(names, func(name string) bool {
		at, err := filepath.EvalSymlinks(library(name))
		return err != nil || !t.looked[at]
	})
}

// library is where a library, or the loader, lies; empty: not here.
func library(name string) string {
	dirs := libraryDirs()
	if filepath.IsAbs(name) {
		dirs = []string{"/"}
	}
	for _, dir := range dirs {
		if lib := filepath.Join(dir, name); exists(lib) {
			return lib
		}
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// libraryDirs are the places of libraries (ld.so(8), and Debian's multiarch).
func libraryDirs() []string {
	dirs, err := filepath.Glob("/usr/lib/*-linux-gnu*")
	if err != nil { // the pattern is right
		panic(fmt.Sprintf("demo: internal error: %v", err))
	}
	return append(dirs, "/usr/lib64", "/usr/lib", "/lib64", "/lib")
}

// needed are the loader and the libraries that an ELF file names (elf(5)); of
// other files: none.
func needed(path string) (names []string, err error) {
	const header = 64 // of a 64-bit file
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() || info.Size() < header {
		return nil, err
	}
	f, err := elf.Open(path)
	var format *elf.FormatError
	if errors.As(err, &format) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP || p.Filesz > 4096 {
			continue
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return nil, fmt.Errorf("look at %s: %w", path, err)
		}
		names = append(names, strings.TrimRight(string(name), "\x00"))
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	return append(names, libs...), nil
}

// languages adds what perl and python3 need besides their programs.
func (t *tree) languages(ctx context.Context) error {
	var dirs []string
	for _, pattern := range []string{"/usr/lib/*/perl-base", "/usr/lib/python3.[0-9]*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		dirs = append(dirs, found...)
	}
	for _, dir := range dirs {
		if err := t.addAll(ctx, dir, strings.TrimPrefix(dir, "/"), all, isExtra); err != nil {
			return err
		}
		modules, err := filepath.Glob(filepath.Join(dir, "lib-dynload", "*.so"))
		if err != nil {
			return err
		}
		for _, m := range modules {
			if err := t.needs(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// isExtra tells what python can do without.
func isExtra(rel string, d fs.DirEntry) bool {
	name := d.Name()
	if d.IsDir() {
		return name == "test" || name == "tests" || name == "__pycache__" || name == "idlelib" || name == "ensurepip" ||
			strings.HasPrefix(name, "config-") || strings.HasSuffix(rel, "-packages")
	}
	return strings.HasSuffix(name, ".a")
}

// goroot adds the Go toolchain, wherever it lies, as /usr/local/go.
func goroot(ctx context.Context, t *tree, limit int64) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return ctx.Err() // an image without it will do
	}
	root, err := filepath.EvalSymlinks(strings.TrimSpace(string(out)))
	if err != nil {
		return fmt.Errorf("find Go: %w", err)
	}
	for _, part := range []string{"VERSION", "go.env", "bin", "src"} {
		if !exists(filepath.Join(root, part)) {
			continue
		}
		if err := t.addAll(ctx, filepath.Join(root, part), "usr/local/go/"+part, limit, nothing); err != nil {
			return err
		}
	}
	return nil
}
