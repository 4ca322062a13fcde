package depcheck

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	module   = "github.com/lacunafs/lacuna"
	internal = "internal/"
)

// goPackage is what the tests need of one package in `go list -json`.
type goPackage struct {
	ImportPath   string
	Dir          string
	Name         string
	Standard     bool
	Module       *struct{ Path, Version string }
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// goList runs `go list -json` with args in the repository's root.
func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json"}, args...)...)
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatalf("go list %s: no packages", strings.Join(args, " "))
	}
	return pkgs
}

// root is the repository's root.
func root(t *testing.T) string {
	t.Helper()
	dir, err := repositoryRoot()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var repositoryRoot = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	return path.Dir(strings.TrimSpace(string(out))), err
})

// rule says what the packages that match from may import of ours.
type rule struct {
	from string   // a package, or with /... a package and all below it; first match wins
	may  []string // the same form
}

// rules are the import direction. Paths are below the module, without
// internal/. A package that no rule matches fails the test: it needs a line.
var rules = []rule{
	{"sys", nil},
	{"config", nil},
	{"depcheck", nil},
	{"features/featurestest", []string{"features"}},
	{"features", []string{"sys"}},
	{"ondemand", nil},
	// Front ends, the devnode with its client, and their conformance suite.
	{"ondemand/ondemandtest/...", []string{"ondemand/...", "sys", "features/..."}},
	{"ondemand/fanotify/...", []string{"ondemand", "ondemand/fanotify/...", "sys", "features"}},
	{"ondemand/cachefiles/...", []string{"ondemand", "ondemand/cachefiles/...", "sys", "features"}},
	{"ondemand/fuse/...", []string{"ondemand", "ondemand/fuse/...", "sys", "features"}},
	{"ondemand/devnode/...", []string{"ondemand", "ondemand/devnode/...", "sys", "features"}},
	{"source", nil},
	{"source/...", []string{"source"}},
	{"cache/...", []string{"cache/...", "ondemand", "sys"}},
	{"toc", nil},
	{"toc/...", []string{"toc"}},
	{"erofs", nil},
	// The one place that sees sources and the cache together, below daemon.
	{"fetch/...", []string{"fetch/...", "source", "toc", "cache", "ondemand"}},
	{"mount", []string{"sys"}},
	{"keeper/...", []string{"keeper/...", "sys"}},
	{"control", []string{"sys"}},
	{"daemon/...", []string{"..."}},
	{"cmd/lacuna", []string{"..."}},
	{"examples/...", []string{"ondemand/devnode/...", "ondemand"}},
	{"scripts/...", nil},
	{"test/...", []string{"..."}},
	{"bench/...", []string{"..."}},
}

// testSupport may be imported by any test, besides what its package may import.
var testSupport = []string{
	"features/featurestest", "ondemand/ondemandtest/...", "source/sourcetest/...",
	// Tests of the upper packages use real ones of the lower.
	"features", "sys", "ondemand", "source/mem", "source",
}

// short is pkg as the rules write it, and whether it is ours.
func short(pkg string) (string, bool) {
	// go list writes a package rebuilt for a test as "p [q.test]".
	pkg, _, _ = strings.Cut(pkg, " ")
	rest, ours := strings.CutPrefix(pkg, module+"/")
	return strings.TrimPrefix(rest, internal), ours
}

// matches tells whether name is what pattern says.
func matches(pattern, name string) bool {
	if pattern == "..." {
		return true
	}
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return name == dir || strings.HasPrefix(name, dir+"/")
	}
	return name == pattern
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) })
}

func TestImportDirection(t *testing.T) {
	for _, p := range goList(t, "-tags=long", "./...") {
		name, ours := short(p.ImportPath)
		if !ours {
			t.Errorf("%s: package in the module's root", p.ImportPath)
			continue
		}
		i := slices.IndexFunc(rules, func(r rule) bool { return matches(r.from, name) })
		if i < 0 {
			t.Errorf("%s: no rule says what it may import; add one to rules in this test", name)
			continue
		}
		for _, imported := range p.Imports {
			if to, ours := short(imported); ours && !matchesAny(rules[i].may, to) {
				t.Errorf("%s imports %s; it may import only %v", name, to, rules[i].may)
			}
		}
		mayTest := slices.Concat(rules[i].may, testSupport, []string{name})
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			if to, ours := short(imported); ours && !matchesAny(mayTest, to) {
				t.Errorf("tests of %s import %s; they may import only %v", name, to, mayTest)
			}
		}
	}
}

// owners are the only packages that import a foreign package, outside tests.
var owners = map[string][]string{
	"golang.org/x/sys":                {"sys"},
	"github.com/alecthomas/kong":      {"cmd/lacuna"},
	"github.com/pelletier/go-toml":    {"config"},
	"github.com/rogpeppe/go-internal": nil,
	"pgregory.net/rapid":              {"ondemand/ondemandtest", "source/sourcetest"},
	"go.uber.org/goleak":              {"ondemand/ondemandtest", "source/sourcetest"},
	"testing":                         {"ondemand/ondemandtest", "source/sourcetest", "features/featurestest", "test/..."},
	"log":                             {"daemon/...", "cmd/lacuna", "examples/..."},
}

func TestForeignPackagesHaveOneOwner(t *testing.T) {
	for _, p := range goList(t, "-tags=long", "./...") {
		name, _ := short(p.ImportPath)
		for _, imported := range p.Imports {
			for foreign, who := range owners {
				if matches(foreign+"/...", imported) && !matchesAny(who, name) {
					t.Errorf("%s imports %s, which only %v may", name, imported, who)
				}
			}
		}
	}
}

func TestRawSystemCallsStayInSysInTestsToo(t *testing.T) {
	for _, p := range goList(t, "-tags=long", "./...") {
		name, _ := short(p.ImportPath)
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			if strings.HasPrefix(imported, "golang.org/x/sys/") && name != "sys" {
				t.Errorf("tests of %s import %s", name, imported)
			}
		}
	}
}
