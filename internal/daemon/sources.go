package daemon

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/file"
	"github.com/lacunafs/lacuna/internal/source/httprange"
	"github.com/lacunafs/lacuna/internal/source/limit"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/trace"
)

// origin describes where an object's bytes come from; it is the Source of the
// object's Meta.
type origin struct {
	Kind       string          `json:"kind"` // "http" or "file"
	Name       string          `json:"name"` // URL or absolute path
	Identity   source.Identity `json:"identity"`
	Sequential bool            `json:"sequential,omitempty"`
	// Once is a random word where the source offers nothing to recognise its
	// bytes by: a later opening is another object.
	Once string `json:"once,omitempty"`

	// group names who is asked, where that does not follow from Name. It is no part
	// of the description.
	group string
}

// Kinds of origins.
const (
	originHTTP = "http"
	originFile = "file"
	// originLayer is a layer's device: it is opened by way of its image.
	originLayer = "layer"
	// originFiles is a device of files: they are opened by way of their manifest.
	originFiles = "files"
)

// redacted is the name without what is secret in it.
func (o origin) redacted() string {
	if o.Kind == originHTTP {
		return source.Redact(o.Name)
	}
	return o.Name
}

// host groups the origins that share connections.
func (o origin) host() string {
	if u, err := url.Parse(o.Name); o.Kind == originHTTP && err == nil {
		return u.Scheme + "://" + u.Host
	}
	if o.group != "" {
		return o.group
	}
	if o.Kind == originFiles {
		return o.Name // its parts have bounds for their own hosts
	}
	return "local files"
}

// id names the object: by its digest where one is known, else by the source
// and its validator.
func (o origin) id(sha string) (ondemand.ObjectID, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return "", fmt.Errorf("name the object of %s: %w", o.redacted(), err)
	}
	if sha != "" {
		b = fmt.Appendf(nil, "sha256:%s %d", sha, o.Identity.Size)
	}
	sum := sha256.Sum256(b)
	return ondemand.ObjectID(hex.EncodeToString(sum[:])), nil
}

// opener opens sources. Its connections are shared.
type opener struct {
	http    *http.Transport
	options httprange.Options
	log     *slog.Logger
	groups  sync.Map // host -> *limit.Group
}

func newOpener(s Settings, log *slog.Logger) *opener {
	o := &opener{log: log}
	o.options = httprange.Options{
		UserAgent: "lacuna/" + s.Version, Stall: time.Duration(s.Config.Stall), ResponseHeader: time.Duration(s.Config.Stall),
		ConnsPerHost: s.Config.ConnsPerHost, Proxy: s.Proxy,
	}
	o.http = httprange.NewTransport(o.options)
	o.options.Transport = o.http
	return o
}

// Close ends idle connections.
func (o *opener) Close() error {
	o.http.CloseIdleConnections()
	return nil
}

// open asks the source what it has.
func (o *opener) open(ctx context.Context, name string) (origin, source.Blob, error) {
	where, blob, err := o.ask(ctx, name)
	if err != nil {
		return where, nil, err
	}
	if where.Identity.Validator == "" {
		where.Once = rand.Text()
	}
	return where, o.wrap(where, blob), nil
}

// ask is open without what is added to all requests, and without a name for a
// source that offers nothing to recognise its bytes by.
func (o *opener) ask(ctx context.Context, name string) (origin, source.Blob, error) {
	where := origin{Kind: originFile, Name: name}
	var blob source.Blob
	var err error
	switch scheme, _, found := strings.Cut(name, "://"); {
	case found && (scheme == "http" || scheme == "https"):
		if err := checkURL(name); err != nil {
			return where, nil, err
		}
		where.Kind = originHTTP
		blob, err = httprange.Open(ctx, name, o.options)
	case found:
		return where, nil, refuse(control.ExitUsage, "give an http:// or https:// URL, or the path of a local file",
			"open %s: no source reads %s URLs", source.Redact(name), scheme)
	default:
		if err := checkPath(name); err != nil {
			return where, nil, err
		}
		blob, err = file.Open(ctx, name)
	}
	if err != nil {
		return where, nil, err // it names the operation and the source
	}
	where.Identity, where.Sequential = source.IdentityOf(blob), source.IsSequential(blob)
	return where, blob, nil
}

// checkURL refuses what can never be asked for.
func checkURL(name string) error {
	u, err := url.Parse(name)
	if err != nil { // which quotes the URL, secrets included
		return refuse(control.ExitUsage, "write blanks and special characters as %20 and the like", "open the source: the URL cannot be parsed")
	}
	if u.Hostname() == "" {
		return refuse(control.ExitUsage, "write http://host/path", "open %s: the URL names no host", source.RedactURL(u))
	}
	return nil
}

// checkPath refuses what is there and is no regular file.
func checkPath(name string) error {
	if !filepath.IsAbs(name) {
		return refuse(control.ExitUsage, "", "open %s: the path is not absolute", name)
	}
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		return refuse(control.ExitUsage, "a source is a regular file or a URL", "open %s: it is not a regular file", name)
	}
	return nil
}

// imageOptions are how an image is asked for.
func (o *opener) imageOptions(q control.MountRequest) oci.Options {
	return oci.Options{
		Platform: q.Platform, Authfile: q.Authfile, DockerConfig: q.DockerConfig, HostsDir: q.HostsDir, PlainHTTP: q.PlainHTTP,
		OpenFile:  file.Open,
		UserAgent: o.options.UserAgent, Stall: o.options.Stall, ResponseHeader: o.options.ResponseHeader,
		ConnsPerHost: o.options.ConnsPerHost, Proxy: o.options.Proxy,
	}
}

// reopenImage opens an image as it was found, without asking the registry.
func (o *opener) reopenImage(ctx context.Context, plan *prepare.Plan, q control.MountRequest) (*oci.Image, error) {
	options := o.imageOptions(q)
	options.Sequential = plan.Sequential
	return oci.Reopen(ctx, plan.Image, options)
}

// reopen makes the blob of a known origin, without asking the source.
func (o *opener) reopen(where origin) (source.Blob, error) {
	blob, err := o.known(where)
	if err != nil {
		return nil, err
	}
	return o.wrap(where, blob), nil
}

// known is reopen without what is added to all requests.
func (o *opener) known(where origin) (source.Blob, error) {
	switch where.Kind {
	case originLayer:
		return nil, fmt.Errorf("open %s: a layer's device is opened by mounting its image", where.Name)
	case originFiles:
		return nil, fmt.Errorf("open %s: they are opened by mounting their manifest", where.Name)
	case originFile:
		return file.Reopen(where.Name, where.Identity), nil
	}
	options := o.options
	options.Sequential = where.Sequential
	blob, err := httprange.Reopen(where.Name, where.Identity, options)
	if err != nil {
		return nil, fmt.Errorf("reopen %s: %w", where.redacted(), err)
	}
	return blob, nil
}

// tracedBlob is a blob with what was counted of its requests.
type tracedBlob struct {
	source.Wrapper
	tally *trace.Tally
}

// wrap adds, from the inside out: counting of each attempt, a bound on the
// attempts to one host, which holds for all blobs together and is free while one
// waits to try again, and the trying again.
func (o *opener) wrap(where origin, blob source.Blob) source.Blob {
	tally := o.tallyOf(where)
	return &tracedBlob{source.Wrapper{Blob: o.wrapIn(tally, where, blob)}, tally}
}

// wrapIn is wrap with the counting in tally.
func (o *opener) wrapIn(tally *trace.Tally, where origin, blob source.Blob) source.Blob {
	return o.again(where, o.bounded(tally, where, blob))
}

// bounded is the part of wrap that is each server's own.
func (o *opener) bounded(tally *trace.Tally, where origin, blob source.Blob) source.Blob {
	group, _ := o.groups.LoadOrStore(where.host(), limit.NewGroup(o.options.ConnsPerHost))
	return group.(*limit.Group).Demand(tally.Wrap(blob)) //nolint:errcheck,forcetypeassert // only Groups are put in
}

// again is the part of wrap that tries again.
func (o *opener) again(where origin, blob source.Blob) source.Blob {
	name := where.redacted()
	return retry.Wrap(blob, retry.Policy{Failed: func(_ int, err error, wait time.Duration) {
		o.log.Warn("source fails, trying again", "source", name, "wait", wait, "err", err)
	}})
}

// tallyOf counts the requests for what where describes.
func (o *opener) tallyOf(where origin) *trace.Tally {
	name := where.redacted()
	return trace.NewTally(func(r trace.Request) { o.log.Debug("asked the source", "source", name, "request", r) })
}

// statsOf is what was counted of the blob's requests.
func statsOf(b source.Blob) trace.Stats {
	if t, ok := b.(*tracedBlob); ok {
		return t.tally.Snapshot()
	}
	return trace.Stats{}
}
