//go:build long

package image

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/test/instance"
)

var debianFlag = flag.String("debian", "", "a root filesystem that debootstrap has made, with python3; empty: make one")

// debianRoot is a Debian that debootstrap has installed and configured.
func debianRoot(t testing.TB) string {
	t.Helper()
	if *debianFlag != "" {
		return *debianFlag
	}
	root := filepath.Join(instance.Dir(t), "debian")
	run(t, "/usr/sbin/debootstrap", "--variant=minbase", "--include=python3-minimal", "stable", root)
	return root
}

// debianTars are the layers of an image as builders make them: the root filesystem,
// and what commands that ran in it have changed, taken from an overlay.
func debianTars(t testing.TB) [][]byte {
	t.Helper()
	lower := debianRoot(t)
	tars := [][]byte{treeTar(t, lower, nil)}
	at := instance.Dir(t)
	if err := os.MkdirAll(filepath.Join(at, "go", "usr/local/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	program := []byte(staticProgram(t))
	for n, script := range []string{
		`set -e; dpkg --purge --force-all mawk; rm -r /usr/share/doc; mkdir /usr/share/doc; echo new > /usr/share/doc/new
		 mkdir /srv/somebody; echo x > /srv/somebody/file; chown -R 1000:1000 /srv/somebody; ln /usr/bin/perl /usr/local/bin/other-perl; rm /etc/motd; chmod 4711 /usr/bin/cat`,
		`set -e; rm -r /usr/share/doc /srv/somebody; ln /usr/local/bin/other-perl /usr/local/bin/third-perl; mkdir -p /usr/share/doc/again
		 mv /etc/debian_version /etc/was_debian_version; rm -r /usr/share/locale; ln -s doc /usr/share/locale; echo changed >> /etc/passwd`,
	} {
		dirs := make(map[string]string)
		for _, name := range []string{"upper", "work", "merged"} {
			dirs[name] = filepath.Join(at, fmt.Sprint(name, n))
			if err := os.Mkdir(dirs[name], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off,metacopy=off,index=off", lower, dirs["upper"], dirs["work"])
		if err := syscall.Mount("overlay", dirs["merged"], "overlay", 0, options); err != nil {
			t.Fatal(err)
		}
		inside(t, dirs["merged"], "/usr/bin/bash", "-c", script)
		err := os.WriteFile(filepath.Join(dirs["merged"], "usr/local/bin", fmt.Sprint("static", n)), program, 0o755)
		if err := errors.Join(err, syscall.Unmount(dirs["merged"], 0)); err != nil {
			t.Fatal(err)
		}
		whiteouts := changes(t, dirs["upper"])
		tars = append(tars, appendTar(t, treeTar(t, dirs["upper"], whiteouts), whiteouts...))
		lower = dirs["upper"] + ":" + lower
	}
	return tars
}

// changes are the whiteouts of an overlay's upper directory, as a layer has them.
func changes(t testing.TB, upper string) (whiteouts []member) {
	t.Helper()
	err := filepath.WalkDir(upper, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, upper+"/")
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		if st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 0 {
			whiteouts = append(whiteouts, whiteout(rel))
		}
		if e.IsDir() {
			all, err := xattrsOf(path)
			if err != nil {
				return err
			}
			if all["trusted.overlay.opaque"] == "y" {
				whiteouts = append(whiteouts, opaque(rel))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return whiteouts
}

// treeTar is a directory as a layer, without the overlay's own marks.
func treeTar(t testing.TB, dir string, whiteouts []member) []byte {
	t.Helper()
	args := []string{"-C", dir, "--format=pax", "--numeric-owner", "--xattrs", "--xattrs-exclude=trusted.overlay.*",
		"--pax-option=delete=atime,delete=ctime", "--sort=name", "--no-wildcards", "--anchored"}
	for _, w := range whiteouts {
		if name := filepath.Base(w.Name); name != ".wh..wh..opq" {
			args = append(args, "--exclude=./"+filepath.Join(filepath.Dir(w.Name), strings.TrimPrefix(name, ".wh.")))
		}
	}
	out, err := exec.Command("tar", append(args, "-cf", "-", ".")...).Output()
	if err != nil {
		t.Fatalf("tar: %v", err)
	}
	return out
}

// A Debian of three layers is the same in every format; and its programs run in it.
func TestDebianInEveryFormat(t *testing.T) {
	tars := debianTars(t)
	everyFormat(t, inAll(tars))
	for _, name := range []string{"estargz", "gzip"} {
		t.Run(name+"/programs", func(t *testing.T) {
			image := formatOf(name).packAll(t, tars...)
			m := start(t, "")
			dir := m.mount(image.push(t, ocitest.New(t)), "mnt")
			debianPrograms(t, dir)
			compare(t, dir, image.tree(t))
			overlayOf(t, m.Dir, dir)
			m.umount(dir)
		})
	}
}

func debianPrograms(t *testing.T, dir string) {
	t.Helper()
	for _, c := range []struct{ want, program, args string }{
		{"static\n", "/usr/local/bin/static1", ""},
		{"42\n", "/usr/bin/bash", "echo $((6*7))"},
		{"['0.125']\n", "/usr/bin/bash", "exec python3 -c 'import os, sys; print([str(1/8)])'"},
		{"changed\n", "/usr/bin/bash", "tail -n 1 /etc/passwd"},
		{"again new-not\n", "/usr/bin/bash", "cd /usr/share/locale; ls | tr '\\n' ' '; [ -e new ] || echo new-not"},
		{"perl\n", "/usr/bin/bash", "third-perl -e 'print \"perl\\n\"'"},
	} {
		var args []string
		if c.args != "" {
			args = []string{"-c", "PATH=$PATH:/usr/local/bin; " + c.args}
		}
		if out := inside(t, dir, c.program, args...); out != c.want {
			t.Errorf("%s %s: %q, want %q", c.program, c.args, out, c.want)
		}
	}
	// apt wants a place for temporary files, as containers have one.
	tmp := filepath.Join(dir, "tmp")
	if err := syscall.Mount("tmpfs", tmp, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(tmp, 0); err != nil {
			t.Error(err)
		}
	}()
	packages := strings.Split(strings.TrimSpace(inside(t, dir, "/usr/bin/apt", "list", "--installed")), "\n")
	if len(packages) < 60 || !slices.ContainsFunc(packages, func(line string) bool { return strings.HasPrefix(line, "bash/") }) {
		t.Errorf("apt lists %d packages: %.300q", len(packages), packages)
	}
	t.Logf("apt lists %d packages", len(packages))
}

// overlayOf installs and removes in a writable layer on top.
func overlayOf(t *testing.T, at, dir string) {
	t.Helper()
	parts := make(map[string]string)
	for _, name := range []string{"upper", "work", "merged"} {
		parts[name] = filepath.Join(at, name)
		if err := os.Mkdir(parts[name], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, parts["upper"], parts["work"])
	if err := syscall.Mount("overlay", parts["merged"], "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(parts["merged"], 0); err != nil {
			t.Error(err)
		}
	}()
	out := inside(t, parts["merged"], "/usr/bin/bash", "-c",
		"set -e; dpkg --purge --force-all gzip >/dev/null 2>&1; [ ! -e /usr/bin/gzip ]; echo more >> /etc/passwd; tail -n 1 /etc/passwd")
	if out != "more\n" {
		t.Errorf("in the overlay: %q", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "usr/bin/gzip")); err != nil {
		t.Errorf("it is gone below the overlay: %v", err)
	}
}
