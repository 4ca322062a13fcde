// Package hosts reads where the content of a registry may be asked for, from
// the directory that containerd reads it from (/etc/containerd/certs.d): one
// directory for each registry with a hosts.toml, or with certificates alone.
//
// The reader is our own because containerd's comes with over a hundred packages
// (github.com/containerd/containerd/v2/core/remotes/docker/config). The meaning
// is the same, with one exception: a hosts.toml that cannot be read is an error
// here, where containerd goes on without it. Keys that are not known are left
// alone, because the file is containerd's.
package hosts

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Host is one place to ask, in the order in which they are asked.
type Host struct {
	// API is the root of the host's API, such as https://mirror.example/v2;
	// nil: the registry's own, with what the other fields say about it.
	API *url.URL
	// Pull: it has content by digest. Resolve: it knows which digest a tag has.
	Pull, Resolve bool
	// CA are files with more root certificates.
	CA []string
	// Client are certificates to show, each a certificate's file and its
	// key's, which is empty where one file has both.
	Client [][2]string
	// SkipVerify accepts any certificate.
	SkipVerify bool
	// Header is added to each request.
	Header http.Header
	// Connect bounds connecting; 0: nothing said.
	Connect time.Duration
	// Proxy is asked in the host's place, whatever the environment says; nil:
	// nothing said.
	Proxy *url.URL
}

// Load returns the hosts of registry below root; nil where nothing is said
// about it there. The last one stands for the registry itself.
func Load(root, registry string) ([]Host, error) {
	for _, name := range []string{escape(registry), registry, "_default"} {
		if name == "" || strings.ContainsRune(name, '/') || name == ".." {
			continue
		}
		dir := filepath.Join(root, name)
		data, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
		switch {
		case err == nil:
			hosts, err := Parse(dir, data)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, "hosts.toml"), err)
			}
			return hosts, nil
		case !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("read hosts of %s: %w", registry, err)
		}
		if _, err := os.Stat(dir); err == nil {
			return certificates(dir)
		}
	}
	return nil, nil
}

// escape is the directory of a registry with a port: host_port_.
func escape(registry string) string {
	i := strings.LastIndexByte(registry, ':')
	if i <= 0 {
		return registry
	}
	return registry[:i] + "_" + registry[i+1:] + "_"
}

// certificates reads a directory as docker lays it out: *.crt are roots, and
// each *.cert has its key in the .key of the same name.
func certificates(dir string) ([]Host, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	h := Host{Pull: true, Resolve: true}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		switch filepath.Ext(file) {
		case ".crt":
			h.CA = append(h.CA, file)
		case ".cert":
			h.Client = append(h.Client, [2]string{file, strings.TrimSuffix(file, ".cert") + ".key"})
		}
	}
	return []Host{h}, nil
}

// table is one host's part of the file.
type table struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	Proxy        string         `toml:"proxy"`
}

// Parse reads a hosts.toml that lies in dir. The last host is the one of the
// key server.
func Parse(dir string, data []byte) ([]Host, error) {
	var file struct {
		table
		Server string           `toml:"server"`
		Host   map[string]table `toml:"host"`
	}
	if err := toml.Unmarshal(data, &file); err != nil {
		return nil, err
	}
	var hosts []Host
	for _, name := range inOrder(data, file.Host) {
		if name == "" {
			return nil, errors.New("a host without a name")
		}
		h, err := file.Host[name].host(dir, name)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		hosts = append(hosts, h)
	}
	last, err := file.host(dir, file.Server)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", file.Server, err)
	}
	return append(hosts, last), nil
}

// inOrder returns the names of the host tables in the order of the file, which
// is the order to ask in and which decoding to a map loses. Hosts that are not
// written as tables come last, by name.
func inOrder(data []byte, tables map[string]table) []string {
	var names []string
	p := unstable.Parser{}
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		key := e.Key()
		if !key.Next() || string(key.Node().Data) != "host" || !key.Next() {
			continue
		}
		name := string(key.Node().Data)
		if _, known := tables[name]; known && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var others []string
	for name := range tables {
		if !slices.Contains(names, name) {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	return append(names, others...)
}

func (t table) host(dir, server string) (h Host, err error) {
	h.SkipVerify = t.SkipVerify
	if h.API, err = api(server, t.OverridePath); err != nil {
		return h, err
	}
	h.Pull, h.Resolve = len(t.Capabilities) == 0, len(t.Capabilities) == 0
	for _, c := range t.Capabilities {
		switch strings.ToLower(c) {
		case "pull":
			h.Pull = true
		case "resolve":
			h.Resolve = true
		case "push":
		default:
			return h, fmt.Errorf("unknown capability %q", c)
		}
	}
	if h.CA, err = texts("ca", t.CA); err != nil {
		return h, err
	}
	for i := range h.CA {
		h.CA[i] = absolute(dir, h.CA[i])
	}
	if h.Client, err = pairs(dir, t.Client); err != nil {
		return h, err
	}
	for name, value := range t.Header {
		if h.Header == nil {
			h.Header = http.Header{}
		}
		values, err := texts("header "+name, value)
		if err != nil {
			return h, err
		}
		h.Header[http.CanonicalHeaderKey(name)] = values
	}
	if t.DialTimeout != "" {
		if h.Connect, err = time.ParseDuration(t.DialTimeout); err != nil || h.Connect <= 0 {
			return h, fmt.Errorf("dial_timeout %q is no duration", t.DialTimeout)
		}
	}
	h.Proxy, err = proxy(t.Proxy)
	return h, err
}

// proxy is the address of a proxy of a kind that net/http knows.
func proxy(address string) (*url.URL, error) {
	if address == "" {
		return nil, nil
	}
	u, err := url.Parse(address)
	switch {
	case err != nil, u.Hostname() == "", !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme),
		u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		return nil, errors.New("proxy is no URL of a proxy, such as http://proxy.example:8080") // it may have a password
	}
	return u, nil
}

// api is the root of the API of server, which is a URL or a host. The path is
// followed by /v2 unless override says that it is the root already.
func api(server string, override bool) (*url.URL, error) {
	if server == "" {
		return nil, nil
	}
	if !strings.HasPrefix(server, "http://") && !strings.HasPrefix(server, "https://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	switch {
	case err != nil:
		return nil, errors.New("no URL")
	case u.Hostname() == "":
		return nil, errors.New("URL without a host")
	case u.User != nil:
		return nil, errors.New("user name and password do not belong into the URL; use the docker configuration")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("URL with a query or a fragment")
	}
	p := ""
	if u.Path != "" {
		p = strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	}
	if !override && !strings.HasSuffix(p, "/v2") {
		p += "/v2"
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: p}, nil
}

// texts reads a string or a list of strings.
func texts(key string, value any) ([]string, error) {
	switch v := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		all := make([]string, len(v))
		for i := range v {
			s, ok := v[i].(string)
			if !ok {
				return nil, fmt.Errorf("%s: not a list of strings", key)
			}
			all[i] = s
		}
		return all, nil
	}
	return nil, fmt.Errorf("%s: neither a string nor a list of strings", key)
}

// pairs reads one file, a list of files, or a list of [certificate, key].
func pairs(dir string, value any) ([][2]string, error) {
	list, ok := value.([]any)
	if !ok {
		files, err := texts("client", value)
		if err != nil || len(files) == 0 {
			return nil, err
		}
		return [][2]string{{absolute(dir, files[0])}}, nil
	}
	var all [][2]string
	for _, e := range list {
		files, err := texts("client", e)
		if err != nil || len(files) < 1 || len(files) > 2 {
			return nil, errors.New("client: neither a file nor a pair of files")
		}
		pair := [2]string{absolute(dir, files[0])}
		if len(files) == 2 && files[1] != "" {
			pair[1] = absolute(dir, files[1])
		}
		all = append(all, pair)
	}
	return all, nil
}

func absolute(dir, file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	return filepath.Join(dir, file)
}
