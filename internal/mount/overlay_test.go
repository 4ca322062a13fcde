package mount

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/features/featurestest"
)

func TestLowerDirectoriesOfAnOverlay(t *testing.T) {
	for line, want := range map[string][]string{
		`lowerdir=/a:/b,upperdir=/u,workdir=/w`:                {"/a", "/b"},
		`rw,lowerdir=/a\134:b:/c\054d\040e::/data,redirect=on`: {"/a:b", "/c,d e", "/data"},
		`rw,lowerdir+=/a:b,lowerdir+=/c,datadir+=/d`:           {"/a:b", "/c", "/d"},
		`rw,upperdir=/a`: nil,
	} {
		m, err := parseLine("36 35 0:40 / /merged rw,relatime shared:1 - overlay overlay " + line)
		if err != nil || !slices.Equal(m.lower(), want) {
			t.Errorf("%s: %q, %v", line, m.lower(), err)
		}
	}
	if m, err := parseLine("36 35 0:40 / /merged rw - ext4 /dev/a rw,lowerdir=/a"); err != nil || m.lower() != nil {
		t.Errorf("ext4: %q, %v", m.lower(), err)
	}
}

// mountOver mounts until the test ends.
func mountOver(t *testing.T, dir, kind, options string) {
	t.Helper()
	ok(t, syscall.Mount("none", dir, kind, 0, options))
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// What the kernel says is understood, whatever characters the path has.
func TestOverlaysAreFound(t *testing.T) {
	featurestest.NeedRoot(t)
	dir := t.TempDir()
	lower, merged := filepath.Join(dir, `lo,w e:r\x`), filepath.Join(dir, "merged")
	for _, d := range []string{filepath.Join(lower, "sub"), filepath.Join(dir, "other"), merged} {
		ok(t, os.MkdirAll(d, 0o755))
	}
	mountOver(t, lower, "tmpfs", "")
	ok(t, os.Mkdir(filepath.Join(lower, "sub"), 0o755))
	escaped := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(filepath.Join(lower, "sub"))
	mountOver(t, merged, "overlay", "lowerdir="+filepath.Join(dir, "other")+":"+escaped)
	mounts, err := List()
	ok(t, err)
	if got := Overlays(mounts, lower); !slices.Equal(got, []string{merged}) {
		t.Errorf("found %q", got)
	}
	if got := Overlays(mounts, lower[:len(lower)-1]); got != nil {
		t.Errorf("found %q over another directory", got)
	}
	mountOver(t, lower, "tmpfs", "")
	mounts, err = List()
	ok(t, err)
	if got := Overlays(mounts, lower); got != nil {
		t.Errorf("found %q over what was mounted later", got)
	}
}
