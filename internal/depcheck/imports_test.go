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

// ourPackages are the packages of the module, with those of long tests only.
func ourPackages(t *testing.T) []goPackage {
	t.Helper()
	return goList(t, "-tags=long", "./...")
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
	from  string   // a package, or with /... a package and all below it; first match wins
	may   []string // the same form
	tests []string // what its tests may import besides
}

// rules are the import direction. Paths are below the module, without
// internal/. A package that no rule matches fails the test: it needs a line.
var rules = []rule{
	{from: "sys"},
	{from: "config"},
	{from: "depcheck"},
	{from: "leaktest", may: []string{"sys"}},
	{from: "features/featurestest", may: []string{"features"}},
	{from: "features", may: []string{"sys"}},
	{from: "ondemand"},
	// Front ends, the devnode with its client, and their conformance suite.
	{from: "ondemand/ondemandtest/...", may: []string{"ondemand/...", "sys", "features/..."}},
	{from: "ondemand/fanotify/...", may: []string{"ondemand", "ondemand/fanotify/...", "sys", "features"}},
	{from: "ondemand/cachefiles/...", may: []string{"ondemand", "ondemand/cachefiles/...", "sys", "features"}},
	// It shows filesystem images without a kernel that reads them.
	{from: "ondemand/fuse/...", may: []string{"ondemand", "ondemand/fuse/...", "sys", "features", "erofs"}, tests: []string{"mount"}},
	{from: "ondemand/devnode/...", may: []string{"ondemand", "ondemand/devnode/...", "sys", "features"}, tests: []string{"devnode"}},
	{from: "source"},
	// The suite tries itself on real leaves.
	{from: "source/sourcetest", may: []string{"source"}, tests: []string{"source/..."}},
	// What the sources over HTTP share.
	{from: "source/ranged", may: []string{"source"}},
	{from: "source/httprange", may: []string{"source", "source/ranged"}},
	{from: "source/oci/...", may: []string{"source", "source/ranged", "source/oci/..."}, tests: []string{"source/..."}},
	{from: "source/origins", may: []string{"source"}, tests: []string{"source/..."}},
	{from: "source/spans", may: []string{"source", "source/limit", "zran"}, tests: []string{"source/..."}},
	{from: "source/...", may: []string{"source"}},
	{from: "cache/...", may: []string{"cache/...", "ondemand", "sys"}},
	{from: "toc"},
	{from: "toc/toctest", may: []string{"toc"}},
	// jtoc and pax are what two formats share each.
	{from: "toc/soci", may: []string{"toc", "toc/pax", "zran"}, tests: []string{"toc/tarscan"}},
	{from: "toc/...", may: []string{"toc", "toc/jtoc", "toc/pax"}},
	{from: "zran"},
	{from: "erofs"},
	// The one place that sees sources and the cache together, below daemon.
	{from: "fetch/...", may: []string{"fetch/...", "source", "source/limit", "toc", "cache", "ondemand"}, tests: []string{"source/..."}},
	{from: "manifest"},
	// Images made of images, by who asks for them.
	{from: "publish", may: []string{"source/...", "toc/...", "zran"}},
	{from: "image", may: []string{"toc", "erofs"}},
	{from: "mount", may: []string{"sys"}, tests: []string{"erofs"}},
	{from: "keeper/keepertest"},
	{from: "keeper/...", may: []string{"keeper/...", "sys"}},
	{from: "control", may: []string{"sys"}},
	{from: "daemon/...", may: []string{"..."}},
	{from: "cmd/lacuna", may: []string{"..."}},
	// The public client, and programs that use it as a stranger would.
	{from: "devnode", may: []string{"ondemand/devnode/proto"}},
	{from: "examples/...", may: []string{"devnode"}},
	{from: "scripts/..."},
	// A user of the binary, and of libraries that the binary does without.
	{from: "demo"},
	{from: "test/...", may: []string{"..."}},
	{from: "bench/...", may: []string{"..."}},
}

// testSupport may be imported by any test, besides what its package may import.
var testSupport = []string{
	"features/featurestest", "ondemand/ondemandtest/...", "source/sourcetest/...", "source/oci/ocitest", "leaktest",
	"toc/toctest", "keeper/keepertest",
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
	for _, p := range ourPackages(t) {
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
		mayTest := slices.Concat(rules[i].may, rules[i].tests, testSupport, []string{name})
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			if to, ours := short(imported); ours && !matchesAny(mayTest, to) {
				t.Errorf("tests of %s import %s; they may import only %v", name, to, mayTest)
			}
		}
	}
}

// owners are the only packages that import a foreign package, outside tests.
var owners = map[string][]string{
	"golang.org/x/sys":                         {"sys"},
	"github.com/alecthomas/kong":               {"cmd/lacuna"},
	"github.com/pelletier/go-toml":             {"config", "source/oci/hosts"},
	"github.com/rogpeppe/go-internal":          nil,
	"github.com/containerd/stargz-snapshotter": {"publish", "bench", "demo"},
	"pgregory.net/rapid":                       {"ondemand/ondemandtest", "source/sourcetest"},
	"github.com/hanwen/go-fuse/v2":             {"ondemand/fuse"},
	"go.uber.org/goleak":                       {"ondemand/ondemandtest", "source/sourcetest", "leaktest"},
	"testing":                                  {"ondemand/ondemandtest", "source/sourcetest", "source/oci/ocitest", "features/featurestest", "toc/toctest", "keeper/keepertest", "leaktest", "test/..."},
	// ondemand/fuse silences a library's.
	"log": {"daemon/...", "cmd/lacuna", "examples/...", "demo", "source/oci/ocitest", "ondemand/fuse"},
}

func TestForeignPackagesHaveOneOwner(t *testing.T) {
	for _, p := range ourPackages(t) {
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
	for _, p := range ourPackages(t) {
		name, _ := short(p.ImportPath)
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			if strings.HasPrefix(imported, "golang.org/x/sys/") && name != "sys" {
				t.Errorf("tests of %s import %s", name, imported)
			}
		}
	}
}
