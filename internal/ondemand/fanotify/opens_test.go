package fanotify

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/ondemandtest"
)

// A program that looks for holes rather than read finds none: it waits in its
// open, while others open the file and read what they ask for only.
func TestProgramThatLooksForHolesWaitsForAll(t *testing.T) {
	objs := objects(t, 1, 1<<20)
	o := objs[0]
	in := attach(t, prepare(t, Options{Table: tableOf(objs...)}).serve())
	if err := in.fe.Attach(o, o.Path, nil, true); err != nil {
		t.Fatal(err)
	}
	res := ondemandtest.StartReader(t).Read(o.Path, 8192, 4096)
	if res.Err != nil || res.Errno != 0 || o.Complete() {
		t.Fatalf("a reader: %v %v, complete %v", res.Err, res.Errno, o.Complete())
	}
	copied := filepath.Join(t.TempDir(), "copied")
	if out, err := exec.Command("cp", o.Path, copied).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
	got, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	if want := ondemandtest.Bytes(o.Seed, ondemand.Range{Len: o.Size()}); !bytes.Equal(got, want) {
		t.Error("cp copied holes")
	}
	if !o.Complete() {
		t.Error("the file is not complete, and cp has copied it")
	}
}
