package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/lacunafs/lacuna/internal/cache"
	"github.com/lacunafs/lacuna/internal/config"
	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/daemon/prepare"
	"github.com/lacunafs/lacuna/internal/features"
	"github.com/lacunafs/lacuna/internal/fetch"
	"github.com/lacunafs/lacuna/internal/image"
	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/concat"
	"github.com/lacunafs/lacuna/internal/source/httprange"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/toc"
)

// explained is an instance whose errors the command line shows as they are.
type explained struct {
	control.Handler
	// note is what those who attach or bind something are told besides;
	// empty: nothing.
	note func() string
}

func (e explained) notes(notes []string, err error) []string {
	if text := e.note(); err == nil && text != "" {
		notes = append(notes, text)
	}
	return notes
}

// Attach is the instance's.
func (e explained) Attach(ctx context.Context, q control.AttachRequest) (control.AttachReply, error) {
	reply, err := e.Handler.Attach(ctx, q)
	reply.Notes = e.notes(reply.Notes, err)
	return reply, toldError(err)
}

// Mount is the instance's.
func (e explained) Mount(ctx context.Context, q control.MountRequest) (control.MountReply, error) {
	reply, err := e.Handler.Mount(ctx, q)
	reply.Notes = e.notes(reply.Notes, err)
	return reply, toldError(err)
}

// Umount is the instance's.
func (e explained) Umount(ctx context.Context, q control.UmountRequest) error {
	return toldError(e.Handler.Umount(ctx, q))
}

// Detach is the instance's.
func (e explained) Detach(ctx context.Context, q control.DetachRequest) error {
	return toldError(e.Handler.Detach(ctx, q))
}

// Bind is the instance's.
func (e explained) Bind(ctx context.Context, q control.BindRequest) (control.BindReply, error) {
	reply, err := e.Handler.Bind(ctx, q)
	reply.Notes = e.notes(reply.Notes, err)
	return reply, toldError(err)
}

// Stop is the instance's.
func (e explained) Stop(ctx context.Context) (control.StopReply, error) {
	reply, err := e.Handler.Stop(ctx)
	return reply, toldError(err)
}

// Hydrate is the instance's.
func (e explained) Hydrate(ctx context.Context, q control.HydrateRequest, progress func(control.Progress)) error {
	return toldError(e.Handler.Hydrate(ctx, q, progress))
}

// toldError is Explain, and nil where there is nothing to explain.
func toldError(err error) error {
	if err == nil {
		return nil
	}
	return Explain(err)
}

// Explain is err as a person sees it: the message, what to do next, and the
// exit status.
func Explain(err error) *control.Error {
	var told *control.Error
	if errors.As(err, &told) {
		return told
	}
	hint, exit := explain(err)
	// Joined errors stand in one line.
	return &control.Error{Message: strings.ReplaceAll(err.Error(), "\n", "; "), Hint: hint, Exit: exit}
}

func explain(err error) (hint string, exit control.Exit) {
	var inUse *cache.InUseError
	var filesystem *cache.FilesystemError
	var version *cache.VersionError
	var privilege *features.PrivilegeError
	var setting *config.SettingError
	var unsupported *features.UnsupportedError
	switch {
	case errors.As(err, &inUse):
		return fmt.Sprintf("process %d has this cache; ask it through its control socket, stop it, or choose another cache with --root DIR", inUse.PID), control.ExitInUse
	case errors.As(err, &filesystem):
		return filesystem.Hint(), control.ExitNotSupported
	case errors.As(err, &version):
		return version.Hint(), control.ExitCorrupt
	case errors.As(err, &privilege):
		return "run it as root: stopping other processes' reads needs " + privilege.Capability, control.ExitNotSupported
	case errors.As(err, &setting):
		return setting.Advice, control.ExitUsage
	case errors.As(err, &unsupported) && unsupported.Filesystem != "":
		return "choose a directory on ext4, xfs or btrfs", control.ExitNotSupported
	case errors.As(err, &unsupported) && unsupported.Feature == features.ErofsFileMounts:
		return "`lacuna features` lists what this kernel can do; load its erofs module, or choose one that can mount EROFS files", control.ExitNotSupported
	case errors.Is(err, features.ErrNotSupported):
		return "`lacuna features` lists what this kernel can do; Linux 6.14 or newer is needed", control.ExitNotSupported
	case errors.Is(err, fetch.ErrDigest):
		return "the source has other bytes than the digest says: check --sha256 and the address", control.ExitCorrupt
	case errors.Is(err, concat.ErrDigest):
		return "the source has other bytes than the manifest says: check sha256 and url of the file", control.ExitCorrupt
	case errors.Is(err, toc.ErrDigest):
		return otherBytes, control.ExitCorrupt
	case errors.Is(err, prepare.ErrDamaged):
		return "mount it again when its registry answers: what is damaged is made anew", control.ExitCorrupt
	case errors.Is(err, image.ErrMerge), errors.Is(err, toc.ErrInvalid):
		return "have the image built anew: a layer's names must not lead through symlinks or files, and what it says must have one meaning", control.ExitError
	case errors.Is(err, toc.ErrLimit):
		return "such an image is not mounted, to bound what it takes of this machine", control.ExitError
	case errors.Is(err, cache.ErrCorrupt):
		return "`lacuna check --repair` forgets what is wrong, and it is fetched again", control.ExitCorrupt
	case errors.Is(err, cache.ErrNoObject):
		return "`lacuna status` lists what is attached; `lacuna check` lists all objects", control.ExitError
	case errors.Is(err, cache.ErrAmbiguous):
		return "write more of the key; `lacuna check` lists all objects", control.ExitError
	case errors.Is(err, control.ErrNotRunning) && rootsRuns():
		return "root's instance has " + rootsSocket + ": ask it as root, or start a daemon of your own", control.ExitError
	case errors.Is(err, control.ErrNotRunning):
		return "start `lacuna daemon`, or name the instance with --root or --socket", control.ExitError
	case errors.Is(err, syscall.EADDRINUSE):
		return "another instance answers on that socket; choose another with --socket", control.ExitInUse
	}
	if hint, exit := explainSource(err); exit != control.ExitOK {
		return hint, exit
	}
	return explainErrno(err)
}

// otherBytes is the hint where what an image's source has is not what its digest says.
const otherBytes = "the registry, or a mirror or proxy before it, has other bytes than the image says: ask who runs it; " +
	"a layout or an archive on this machine is damaged: copy the image anew"

// rootsSocket is where root's instance listens if it is not told otherwise.
const rootsSocket = "/run/lacuna/lacuna.sock"

// rootsRuns tells whether this is another user, and root may have an instance.
func rootsRuns() bool {
	if os.Geteuid() == 0 {
		return false
	}
	_, err := os.Lstat(rootsSocket)
	return err == nil
}

// explainSource knows the errors of sources; ExitOK: it is none.
func explainSource(err error) (hint string, exit control.Exit) {
	var status *httprange.StatusError
	var ofImage *imageError
	var wish *prepare.WishError
	var wrong *source.WrongError
	switch {
	case errors.As(err, &ofImage) && errors.Is(err, source.ErrNotFound):
		return "check the registry, the repository and the tag, or the path", control.ExitUnreachable
	case errors.Is(err, oci.ErrNoPlatform):
		return "choose one that is there: --platform OS/ARCH", control.ExitUnreachable
	case errors.Is(err, oci.ErrSeveral):
		return "name one: oci-layout:DIR:TAG or oci-layout:DIR@DIGEST, or docker-archive:FILE:NAME:TAG", control.ExitUnreachable
	case errors.As(err, &wish):
		return "leave --format out, and each layer is read in the best way that it has", control.ExitUnreachable
	case errors.Is(err, prepare.ErrWish):
		return "write --format estargz, zstdchunked, soci, soci-v2, soci-v1 or scanned", control.ExitUsage
	case errors.Is(err, oci.ErrPlatform):
		return "write linux/amd64 or linux/arm/v7", control.ExitUsage
	case errors.As(err, &ofImage) && errors.Is(err, source.ErrDenied):
		return "`docker login` to the registry, or name a file with credentials: --authfile", control.ExitUnreachable
	case errors.As(err, &ofImage) && errors.Is(err, oci.ErrReference):
		return "write registry.example/repository:tag, oci-layout:DIR or docker-archive:FILE", control.ExitUsage
	case errors.Is(err, source.ErrNotFound) && !errors.As(err, &status):
		return "check the path; a URL begins with http:// or https://", control.ExitUnreachable
	case errors.Is(err, source.ErrNotFound):
		return "check the address", control.ExitUnreachable
	case errors.Is(err, source.ErrDenied) && errors.As(err, &status):
		return "put user and password or a signature into the URL: https://user:password@host/path", control.ExitUnreachable
	case errors.Is(err, source.ErrDenied):
		return "the daemon's user may not read it: allow that, or name another path", control.ExitUnreachable
	case errors.Is(err, source.ErrSizeUnknown):
		return "the server must tell the length; one that serves ranges or plain files does", control.ExitUnreachable
	case errors.Is(err, source.ErrChanged):
		return "detach and attach it again to get the new version", control.ExitUnreachable
	case errors.Is(err, source.ErrBusy):
		return "try again later", control.ExitUnreachable
	case isUntrusted(err) && errors.As(err, &ofImage):
		return "name the registry's certificate as ca in its hosts.toml, or set skip_verify there (docs/registries.md); --plain-http is for one without encryption", control.ExitUnreachable
	case isUntrusted(err):
		return "add the certificate of who signs for the server to those that this machine trusts; http:// is for one without encryption", control.ExitUnreachable
	case errors.Is(err, source.ErrUnreachable), errors.Is(err, context.DeadlineExceeded):
		return "check the host name and the network", control.ExitUnreachable
	case errors.As(err, &wrong) && !wrong.Unsure:
		return otherBytes, control.ExitCorrupt
	case errors.Is(err, source.ErrNotBytes):
		return "the server does not answer as HTTP asks; a proxy in between may be the cause", control.ExitUnreachable
	case errors.As(err, &ofImage) && errors.As(err, &status) && status.Status == http.StatusMethodNotAllowed:
		return "that registry takes no pushes: push to another one with --tag REGISTRY/REPOSITORY:TAG, or write --output oci-layout:DIR", control.ExitUnreachable
	case errors.As(err, &status):
		return "the server refuses: ask who runs it, or try again later", control.ExitUnreachable
	}
	return "", control.ExitOK
}

// isUntrusted tells whether err is that of a server that does not prove who it is, or
// does not speak TLS.
func isUntrusted(err error) bool {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	return errors.As(err, &certificate) || errors.As(err, &record) || errors.Is(err, http.ErrSchemeMismatch)
}

func explainErrno(err error) (hint string, exit control.Exit) {
	var ofImage *imageError
	switch {
	case errors.Is(err, syscall.EROFS):
		return "choose another place: that filesystem is mounted read-only", control.ExitError
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "free space on the cache's filesystem, or choose another cache with --root DIR", control.ExitError
	case errors.Is(err, syscall.ENOTDIR):
		return "a part of the path is a file: choose another place", control.ExitError
	case errors.Is(err, syscall.EBUSY):
		return "close the files that are open, then try again", control.ExitInUse
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EPERM):
		if errors.As(err, &ofImage) { // no right of root's is needed for it
			return "choose another directory, or have its owner allow it", control.ExitError
		}
		if os.Geteuid() != 0 {
			return "run it as root", control.ExitNotSupported
		}
	}
	return "", control.ExitError
}

// OfImage marks an error of reading or writing images, for Explain.
func OfImage(err error) error {
	if err == nil {
		return nil
	}
	return &imageError{err}
}

// imageError is an error of opening an image: its hints are others than a file's.
type imageError struct{ error }

// Unwrap is the error.
func (e *imageError) Unwrap() error { return e.error }
