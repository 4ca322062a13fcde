package hosts_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source/oci/hosts"
)

// example is the file of containerd's docs/hosts.md with all its keys.
const example = `
server = "https://registry-1.docker.io"

[host."https://mirror.test"]
  capabilities = ["pull"]
  ca = "certs/mirror.crt"
  skip_verify = true
  dial_timeout = "3s"

[host."https://mirror.test".header]
  x-one = "1"
  X-Two = ["a", "b"]

[host."http://10.0.0.1:5000/v2/"]
  capabilities = ["pull", "resolve", "push"]
  ca = ["/etc/a.crt", "b.crt"]
  client = [["/etc/c.cert", "c.key"], ["d.pem"], ["e.pem", ""]]
  proxy = "socks5://proxy.test:1080/"

[host."other.test/harbor/proxy/"]
  override_path = true
  client = ["one.pem", "/two.pem"]
  future = "key"
`

func TestParse(t *testing.T) {
	all, err := hosts.Parse("/d", []byte(example))
	if err != nil || len(all) != 4 {
		t.Fatal(all, err)
	}
	var urls []string
	for _, h := range all {
		urls = append(urls, h.API.String())
	}
	want := []string{"https://mirror.test/v2", "http://10.0.0.1:5000/v2", "https://other.test/harbor/proxy", "https://registry-1.docker.io/v2"}
	if !reflect.DeepEqual(urls, want) {
		t.Errorf("hosts %v", urls)
	}
	a := all[0]
	if !a.Pull || a.Resolve || !a.SkipVerify || a.Connect != 3*time.Second || !reflect.DeepEqual(a.CA, []string{"/d/certs/mirror.crt"}) ||
		a.Header.Get("X-One") != "1" || len(a.Header.Values("X-Two")) != 2 || a.Plain() {
		t.Errorf("%+v", a)
	}
	b := all[1]
	if !b.Pull || !b.Resolve || !reflect.DeepEqual(b.CA, []string{"/etc/a.crt", "/d/b.crt"}) ||
		!reflect.DeepEqual(b.Client, [][2]string{{"/etc/c.cert", "/d/c.key"}, {"/d/d.pem", ""}, {"/d/e.pem", ""}}) ||
		b.Proxy == nil || b.Proxy.Host != "proxy.test:1080" || b.Plain() {
		t.Errorf("%+v", b)
	}
	if c := all[2]; !reflect.DeepEqual(c.Client, [][2]string{{"/d/one.pem", ""}, {"/two.pem", ""}}) || !c.Pull || !c.Resolve {
		t.Errorf("%+v", c)
	}
	if d := all[3]; !d.Plain() || !d.Pull || !d.Resolve {
		t.Errorf("%+v", d)
	}
}

// The keys of the table apply to the server where they stand before the hosts.
func TestParseServer(t *testing.T) {
	all, err := hosts.Parse("/d", []byte("server = \"own.test\"\ncapabilities = [\"pull\"]\nca = \"/own.crt\"\nclient = \"c.pem\"\nskip_verify = true\n"+
		"override_path = true\nproxy = \"http://p.test\"\n[header]\nx = \"1\"\n[host.\"m.test\"]\n"))
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	h := all[1]
	if h.API.String() != "https://own.test" || !h.Pull || h.Resolve || !h.SkipVerify || h.Header.Get("X") != "1" || h.Proxy.Host != "p.test" ||
		!reflect.DeepEqual(h.CA, []string{"/own.crt"}) || !reflect.DeepEqual(h.Client, [][2]string{{"/d/c.pem", ""}}) {
		t.Errorf("%+v", h)
	}
	if m := all[0]; !m.Plain() || m.Header != nil || !m.Resolve || m.API.Path != "/v2" {
		t.Errorf("a host took what is said of the server: %+v", m)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"server", `server = 5`, `server = "https://"`, `server = "https://a b"`, `server = "https://u:p@a.test"`,
		`server = "https://a.test/?x=y"`, `capabilities = ["fly"]`, `ca = 5`, `ca = [5]`, `client = 5`, `client = [["a","b","c"]]`,
		`client = [[]]`, `dial_timeout = "soon"`, `dial_timeout = "-1s"`, "[header]\nx = 5", `[host.""]`, "[host.\"%zz\"]", `host = 5`,
		`proxy = "proxy.test:8080"`, `proxy = "ftp://p.test"`, `proxy = "http://p.test/x"`, `proxy = "http://"`,
	} {
		if all, err := hosts.Parse("/d", []byte(text)); err == nil {
			t.Errorf("%s parsed as %+v", text, all)
		}
	}
}

func TestLoad(t *testing.T) {
	root := t.TempDir()
	write := func(dir, name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := hosts.Load(root, "a.test"); all != nil || err != nil {
		t.Errorf("nothing there: %v, %v", all, err)
	}
	write("a.test_5000_", "hosts.toml", `server = "escaped.test"`)
	write("b.test:5000", "hosts.toml", `server = "colon.test"`)
	write("[::1]_5000_", "hosts.toml", `server = "six.test"`)
	write("a.test", "hosts.toml", `server = "name.test"`)
	write("certs.test", "ca.crt", "")
	write("certs.test", "client.cert", "")
	write("broken.test", "hosts.toml", `server = `)
	for registry, want := range map[string]string{
		"a.test:5000": "escaped.test", "a.test": "name.test", "b.test:5000": "colon.test", "[::1]:5000": "six.test",
	} {
		all, err := hosts.Load(root, registry)
		if err != nil || len(all) != 1 || all[0].API.Host != want {
			t.Errorf("%s: %+v, %v", registry, all, err)
		}
	}
	all, err := hosts.Load(root, "certs.test")
	if err != nil || len(all) != 1 || all[0].API != nil || len(all[0].CA) != 1 || !strings.HasSuffix(all[0].Client[0][1], "client.key") {
		t.Errorf("certificates: %+v, %v", all, err)
	}
	if _, err := hosts.Load(root, "broken.test"); err == nil || !strings.Contains(err.Error(), "broken.test/hosts.toml") {
		t.Errorf("broken: %v", err)
	}
	if all, err := hosts.Load(root, ".."); all != nil || err != nil {
		t.Errorf("..: %v, %v", all, err)
	}
	write("_default", "hosts.toml", `[host."m.test"]`)
	if all, err := hosts.Load(root, "a.test:5001"); err != nil || len(all) != 2 || all[0].API.Host != "m.test" {
		t.Errorf("the port that nothing is said of: %+v, %v", all, err)
	}
	all, err = hosts.Load(root, "any.test")
	if err != nil || len(all) != 2 || all[0].API.Host != "m.test" || all[1].API != nil {
		t.Errorf("_default: %+v, %v", all, err)
	}
}

func TestTLSRefusesWhatIsNoCertificate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, h := range []hosts.Host{{CA: []string{path}}, {CA: []string{path + "y"}}, {Client: [][2]string{{path, ""}}}} {
		if c, err := h.TLS(nil); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%+v: %v, %v", h, c, err)
		}
	}
}

// FuzzParse: no panic, and every host that parses can be asked.
func FuzzParse(f *testing.F) {
	f.Add(example)
	f.Add(`host = {"a.test" = {capabilities = ["pull"]}}`)
	f.Add("[host.a.header]\nx='1'\n[[host.b]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := hosts.Parse("/d", []byte(text))
		if err != nil {
			return
		}
		if len(all) == 0 {
			t.Fatal("no host")
		}
		for _, h := range all[:len(all)-1] {
			if h.API == nil || h.API.Hostname() == "" || h.API.Scheme != "http" && h.API.Scheme != "https" {
				t.Fatalf("%+v", h)
			}
		}
	})
}
