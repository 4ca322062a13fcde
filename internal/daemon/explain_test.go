package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/config"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/fetch"
	"github.com/lacunafs/lacuna/internal/image"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/httprange"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/toc"
)

// Each error that a user can act on has its exit status, and a hint that names
// the next step.
func TestEveryErrorIsExplained(t *testing.T) {
	status := func(n int) error { return &httprange.StatusError{Status: n, URL: "http://h/x"} }
	for _, tt := range []struct {
		name string
		err  error
		exit control.Exit
		hint string // a part of it; empty: there is none
	}{
		{"cache in use", &cache.InUseError{Dir: "/c", PID: 7}, control.ExitInUse, "process 7"},
		{"cache on tmpfs", &cache.FilesystemError{Dir: "/c", Type: "tmpfs"}, control.ExitNotSupported, "ext4, xfs or btrfs"},
		{"newer cache", &cache.VersionError{Path: "x", Version: 9, Known: 1}, control.ExitCorrupt, "newer program"},
		{"not root", &features.PrivilegeError{Feature: "f", Capability: "CAP_X", Err: syscall.EPERM}, control.ExitNotSupported, "CAP_X"},
		{"setting", &config.SettingError{Setting: "s", Reason: "r", Advice: "write it so"}, control.ExitUsage, "write it so"},
		{"setting without advice", &config.SettingError{Setting: "s", Reason: "r"}, control.ExitUsage, ""},
		{"old kernel", &features.UnsupportedError{Feature: "f", Needs: "n"}, control.ExitNotSupported, "lacuna features"},
		{"other filesystem", &features.UnsupportedError{Feature: "f", Filesystem: "tmpfs"}, control.ExitNotSupported, "ext4, xfs or btrfs"},
		{"no EROFS", &features.UnsupportedError{Feature: features.ErofsFileMounts, Needs: "n"}, control.ExitNotSupported, "erofs module"},
		{"bare no", features.ErrNotSupported, control.ExitNotSupported, "lacuna features"},
		{"wrong digest", fetch.ErrDigest, control.ExitCorrupt, "--sha256"},
		{"through a symlink", image.ErrMerge, control.ExitError, "lead through symlinks"},
		{"a layer that nobody writes", toc.ErrInvalid, control.ExitError, "have the image built anew"},
		{"a bomb", toc.ErrLimit, control.ExitError, "bound"},
		{"damaged", prepare.ErrDamaged, control.ExitCorrupt, "when its registry answers"},
		{"corrupt", cache.ErrCorrupt, control.ExitCorrupt, "lacuna check --repair"},
		{"no object", cache.ErrNoObject, control.ExitError, "lacuna check"},
		{"several objects", cache.ErrAmbiguous, control.ExitError, "more of the key"},
		{"no instance", control.ErrNotRunning, control.ExitError, "lacuna daemon"},
		{"socket in use", syscall.EADDRINUSE, control.ExitInUse, "--socket"},
		{"no such URL", status(404), control.ExitUnreachable, "address"},
		{"no such path", source.ErrNotFound, control.ExitUnreachable, "path"},
		{"URL needs a login", status(401), control.ExitUnreachable, "user:password"},
		{"path is not for us", source.ErrDenied, control.ExitUnreachable, "may not read"},
		{"size unknown", source.ErrSizeUnknown, control.ExitUnreachable, "length"},
		{"changed", source.ErrChanged, control.ExitUnreachable, "attach it again"},
		{"busy", status(503), control.ExitUnreachable, "later"},
		{"unreachable", source.ErrUnreachable, control.ExitUnreachable, "network"},
		{"certificate", &tls.CertificateVerificationError{Err: errors.New("x")}, control.ExitUnreachable, "certificate"},
		{"registry's certificate", OfImage(&tls.CertificateVerificationError{Err: errors.New("x")}), control.ExitUnreachable, "skip_verify"},
		{"several images", OfImage(oci.ErrSeveral), control.ExitUnreachable, "oci-layout:DIR:TAG"},
		{"no TLS", OfImage(tls.RecordHeaderError{Msg: "x"}), control.ExitUnreachable, "--plain-http"},
		{"too slow", context.DeadlineExceeded, control.ExitUnreachable, "network"},
		{"not the bytes", source.ErrNotBytes, control.ExitUnreachable, "proxy"},
		{"another layer", &source.WrongError{Err: source.ErrNotBytes}, control.ExitCorrupt, "a layout or an archive on this machine"},
		{"another zTOC", toc.ErrDigest, control.ExitCorrupt, "a layout or an archive on this machine"},
		{"no pushes", OfImage(status(405)), control.ExitUnreachable, "--output oci-layout:DIR"},
		{"layout of others", OfImage(syscall.EACCES), control.ExitError, "choose another directory"},
		{"server error", status(500), control.ExitUnreachable, "later"},
		{"disk full", syscall.ENOSPC, control.ExitError, "--root"},
		{"quota", syscall.EDQUOT, control.ExitError, "--root"},
		{"read-only", syscall.EROFS, control.ExitError, "read-only"},
		{"busy file", syscall.EBUSY, control.ExitInUse, "close"},
		{"anything", errors.New("x"), control.ExitError, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			told := Explain(fmt.Errorf("do it: %w", tt.err))
			if told.Exit != tt.exit {
				t.Errorf("exit %d, want %d", told.Exit, tt.exit)
			}
			if !strings.Contains(told.Hint, tt.hint) || (told.Hint == "") != (tt.hint == "") {
				t.Errorf("hint %q, want %q", told.Hint, tt.hint)
			}
			if told.Message != "do it: "+tt.err.Error() {
				t.Errorf("message %q", told.Message)
			}
		})
	}
}

func TestExplainTellsInOneLine(t *testing.T) {
	told := Explain(errors.Join(errors.New("one"), syscall.ENOSPC))
	if told.Message != "one; no space left on device" || told.Exit != control.ExitError || told.Hint == "" {
		t.Errorf("%+v", told)
	}
}

func TestExplainKeepsWhatIsToldAlready(t *testing.T) {
	err := refuse(control.ExitInUse, "hint", "message of %d", 1)
	told := Explain(fmt.Errorf("attach x: %w", err))
	if *told != (control.Error{Message: "message of 1", Hint: "hint", Exit: control.ExitInUse}) {
		t.Errorf("%+v", told)
	}
}

// handler fails everything with one error.
type handler struct{ err error }

func (h handler) Attach(context.Context, control.AttachRequest) (control.AttachReply, error) {
	return control.AttachReply{}, h.err
}
func (h handler) Mount(context.Context, control.MountRequest) (control.MountReply, error) {
	return control.MountReply{}, h.err
}
func (h handler) Umount(context.Context, control.UmountRequest) error { return h.err }
func (h handler) Detach(context.Context, control.DetachRequest) error { return h.err }
func (h handler) Bind(context.Context, control.BindRequest) (control.BindReply, error) {
	return control.BindReply{}, h.err
}

func (h handler) Hydrate(context.Context, control.HydrateRequest, func(control.Progress)) error {
	return h.err
}
func (h handler) Stop(context.Context) (control.StopReply, error) { return control.StopReply{}, h.err }
func (h handler) Status(context.Context) (control.Status, error)  { return control.Status{}, h.err }

func TestErrorsOverTheSocketAreExplained(t *testing.T) {
	ctx := context.Background()
	for _, err := range []error{nil, &os.PathError{Op: "open", Path: "/x", Err: syscall.ENOSPC}} {
		e := explained{handler{err}, func() string { return "" }}
		_, attach := e.Attach(ctx, control.AttachRequest{})
		_, bind := e.Bind(ctx, control.BindRequest{})
		for name, got := range map[string]error{
			"attach": attach, "bind": bind, "detach": e.Detach(ctx, control.DetachRequest{}),
			"hydrate": e.Hydrate(ctx, control.HydrateRequest{}, nil),
		} {
			var told *control.Error
			if (got == nil) != (err == nil) || got != nil && (!errors.As(got, &told) || told.Hint == "") {
				t.Errorf("%s of %v: %v", name, err, got)
			}
		}
	}
}
