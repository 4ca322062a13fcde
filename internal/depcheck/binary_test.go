package depcheck

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/dependencies.txt")

// A dependency is a decision (docs/adr), never a side effect: what the binary
// is made of is checked in, and a change of it shows in review.
func TestBinaryIsMadeOfWhatIsListed(t *testing.T) {
	name := filepath.Join(root(t), "docs", "dependencies.txt")
	var foreign []string
	for _, p := range goList(t, "-deps", "./cmd/lacuna") {
		if p.Standard || p.Module == nil || p.Module.Path == module {
			continue
		}
		foreign = append(foreign, p.Module.Path)
	}
	slices.Sort(foreign)
	foreign = slices.Compact(foreign)
	got := "# The modules in bin/lacuna, besides its own. Rewritten by: go test ./internal/depcheck -update\n" +
		strings.Join(foreign, "\n") + "\n"
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("bin/lacuna is made of\n%s\ndocs/dependencies.txt says\n%s\n"+
			"if that is meant: add an ADR line and run go test ./internal/depcheck -update", got, want)
	}
}
