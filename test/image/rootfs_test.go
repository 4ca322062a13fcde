package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/test/instance"
)

// member is a tar entry with its data; the header's Size is that of the data.
type member struct {
	tar.Header
	data string
}

// tarOf writes members as archive/tar does.
func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if m.Size == 0 {
			m.Size = int64(len(m.data))
		}
		err := w.WriteHeader(&m.Header)
		if err == nil {
			_, err = w.Write([]byte(m.data))
		}
		if err != nil {
			t.Fatalf("%q: %v", m.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var noon = time.Unix(1700000000, 0)

func file(name, data string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: noon}, data}
}

func dir(name string) member {
	return member{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: noon}, ""}
}

func symlink(name, target string) member {
	return member{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: noon}, ""}
}

func hardLink(name, target string) member {
	return member{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, ""}
}

// machineTar is what GNU tar makes of parts of this machine.
func machineTar(t testing.TB, flags []string, paths ...string) []byte {
	t.Helper()
	args := append([]string{"-C", "/", "--format=pax", "--numeric-owner", "--xattrs", "--pax-option=delete=atime,delete=ctime"}, flags...)
	cmd := exec.Command("tar", append(append(args, "-cf", "-"), paths...)...)
	var out, told bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &told
	if err := cmd.Run(); err != nil {
		t.Fatalf("tar: %v: %s", err, told.String())
	}
	return out.Bytes()
}

// rootPrograms can be run in the root filesystem.
var rootPrograms = []string{"bash", "ls", "cat", "sha256sum", "python3.11", "find", "wc", "tail", "git", "perl", "openssl", "tar"}

// rootTars makes the layers of a root filesystem of parts of this machine.
func rootTars(t testing.TB) [][]byte {
	t.Helper()
	base := []string{"bin", "sbin", "lib", "lib64", "etc", "usr/share/zoneinfo", "usr/share/git-core"}
	libs := make(map[string]bool)
	for _, name := range rootPrograms {
		path := "/usr/bin/" + name
		if _, err := os.Stat(path); err != nil {
			continue
		}
		base = append(base, path[1:])
		out, err := exec.Command("ldd", path).CombinedOutput()
		if err != nil {
			continue // it is static
		}
		for _, word := range strings.Fields(string(out)) {
			if !strings.HasPrefix(word, "/") || libs[word] {
				continue
			}
			libs[word] = true
			real, err := filepath.EvalSymlinks(word)
			if err != nil {
				t.Fatal(err)
			}
			resolved, err := filepath.EvalSymlinks(filepath.Dir(word))
			if err != nil {
				t.Fatal(err)
			}
			base = append(base, real[1:], filepath.Join(resolved, filepath.Base(word))[1:])
		}
	}
	two := machineTar(t, []string{"--exclude=__pycache__", "--exclude=usr/lib/python3.11/test"}, "usr/lib/python3.11", "usr/lib/x86_64-linux-gnu/perl-base")
	two = appendTar(t, two,
		member{tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.passwd"}, ""}, // and a new one in the next layer
		file("etc/apt/sources.list", "# replaced\n"),
		member{tar.Header{Typeflag: tar.TypeReg, Name: "etc/apt/.wh..wh..opq"}, ""},
		member{tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o750, Uid: 7, Gid: 8, ModTime: noon}, ""},
		dir("proc/"), dir("dev/"), dir("tmp/"), dir("root/"),
	)
	three := tarOf(t,
		file("etc/passwd", "root:x:0:0::/root:/bin/bash\n"),
		member{tar.Header{Typeflag: tar.TypeReg, Name: "usr/lib/python3.11/.wh.idlelib"}, ""},
		dir("usr/lib/python3.11/email"), // after a name that sorts behind the marker's
		file("usr/lib/python3.11/email/new.py", "print('new')\n"),
		member{tar.Header{Typeflag: tar.TypeReg, Name: "usr/lib/python3.11/email/.wh..wh..opq"}, ""},
		hardLink("usr/bin/other-bash", "usr/bin/bash"),
		file("usr/lib/python3.11/this.py", "raise SystemExit(3)\n"),
		member{tar.Header{Typeflag: tar.TypeReg, Name: "bin2/static", Mode: 0o755, ModTime: noon}, staticProgram(t)},
		symlink("usr/share/zoneinfo/Mars", "/etc/localtime"),
	)
	return [][]byte{machineTar(t, []string{"--exclude=etc/alternatives", "--exclude=etc/shadow*"}, dedup(base)...), two, three}
}

func dedup(names []string) []string {
	seen := make(map[string]bool)
	var kept []string
	for _, n := range names {
		if !seen[n] {
			kept = append(kept, n)
		}
		seen[n] = true
	}
	return kept
}

// appendTar adds members to a tar.
func appendTar(t testing.TB, b []byte, members ...member) []byte {
	t.Helper()
	// GNU tar fills its last record up with blocks of zeros; the first two are the end.
	end := len(bytes.TrimRight(b, "\x00"))
	end = (end + 511) / 512 * 512
	return append(b[:end:end], tarOf(t, members...)...)
}

// staticProgram is a program that needs nothing but the kernel.
func staticProgram(t testing.TB) string {
	t.Helper()
	dir := instance.Dir(t)
	source := filepath.Join(dir, "main.go")
	text := "package main\n\nimport \"os\"\n\nfunc main() {\n\tif _, err := os.Stdout.WriteString(\"static\\n\"); err != nil {\n\t\tos.Exit(1)\n\t}\n}\n"
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "static"), source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "static"))
	if err := errors.Join(err); err != nil {
		t.Fatal(err)
	}
	return string(b)
}
