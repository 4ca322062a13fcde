package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/lacunafs/lacuna/internal/control"
	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/ondemand/devnode"
	"github.com/lacunafs/lacuna/internal/sys"
)

// boundDir is a directory whose files an external daemon fills.
type boundDir struct {
	record record
	dir    *devnode.Dir
	server *devnode.Server
	ended  chan struct{} // closed when the server has ended
}

// Names of a bound directory's descriptors in the keeper.
type bindNames struct{ presence, listener, conn string }

func namesOf(dir string) bindNames {
	sum := sha256.Sum256([]byte(dir))
	h := hex.EncodeToString(sum[:8])
	return bindNames{presence: "presence-" + h, listener: "devnode-" + h, conn: "devconn-" + h}
}

// Bind serves a directory of hollow files to the daemon that opens the devnode.
func (i *Instance) Bind(_ context.Context, q control.BindRequest) (control.BindReply, error) {
	reply, err := i.bind(q)
	return reply, i.named(err)
}

func (i *Instance) bind(q control.BindRequest) (control.BindReply, error) {
	var reply control.BindReply
	dir, err := filepath.EvalSymlinks(q.Dir)
	if err != nil {
		return reply, refuse(control.ExitUsage, "name a directory of sparse files", "bind %s: %v", q.Dir, bare(err))
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return reply, refuse(control.ExitUsage, "name a directory of sparse files", "bind %s: it is not a directory", q.Dir)
	}
	socket, err := canonical("make devnode", q.Devnode)
	if err != nil {
		return reply, err
	}
	if err := suitsDevnode(socket); err != nil {
		return reply, fmt.Errorf("bind %s: %w", dir, err)
	}
	if err := i.suits(dir); err != nil {
		return reply, fmt.Errorf("bind %s: %w", dir, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.stopping {
		return reply, errStopping()
	}
	if err := i.takenLocked("bind", dir); err != nil {
		return reply, err
	}
	if err := i.refuseSourcesLocked(dir); err != nil {
		return reply, err
	}
	rec := record{Kind: kindBind, Path: dir, Devnode: socket}
	// On record before anything is marked: a successor goes on with it.
	if err := i.records.put(rec); err != nil {
		return reply, err
	}
	b, err := i.bindLocked(rec, devnode.Options{Path: socket}, nil)
	if err != nil {
		if errors.Is(err, devnode.ErrInUse) {
			err = refuse(control.ExitInUse, "choose another path for --devnode", "%v", err)
		}
		// What the keeper has by now would be taken for the next bind's.
		return reply, errors.Join(err, i.unholdBind(dir), i.records.remove(dir))
	}
	reply.Files = len(b.dir.Objects())
	for _, s := range b.dir.Skipped() {
		reply.Notes = append(reply.Notes, fmt.Sprintf("%s is not served: %s", s.Name, s.Reason))
	}
	i.log.Info("bound", "dir", dir, "devnode", socket, "files", reply.Files)
	return reply, nil
}

// maxSocketPath is the longest path of a socket (sun_path of struct sockaddr_un,
// less its final zero).
const maxSocketPath = 107

// suitsDevnode tells why no socket can be made at path.
func suitsDevnode(path string) error {
	const hint = "choose another path for --devnode"
	if len(path) > maxSocketPath {
		return refuse(control.ExitUsage, hint, "make devnode %s: a socket's path has at most %d bytes, this one %d", path, maxSocketPath, len(path))
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != os.ModeSocket {
		return refuse(control.ExitUsage, hint, "make devnode %s: there is a file that is not a socket", path)
	}
	return nil
}

// suits tells why files in dir cannot be served.
func (i *Instance) suits(dir string) error {
	return i.probe.HaveFanotifyPreContent(dir)
}

// bindLocked serves rec's directory. o has what is inherited, presence its
// Record or nil. When it fails nothing of it is left but the record.
func (i *Instance) bindLocked(rec record, o devnode.Options, presence *sys.FD) (*boundDir, error) {
	dir, err := devnode.OpenDir(rec.Path, presence)
	if err != nil {
		if o.Listener != nil {
			err = errors.Join(err, o.Listener.Close())
		}
		if o.Conn != nil {
			err = errors.Join(err, o.Conn.Close())
		}
		return nil, err
	}
	b := &boundDir{record: rec, dir: dir, ended: make(chan struct{})}
	names := namesOf(rec.Path)
	o.Dir, o.NextID = dir, i.flight.Next
	o.OnError = func(err error) { i.report("devnode "+rec.Devnode, err) }
	o.OnBind = func(conn *sys.FD, tag string) { i.daemonBound(names.conn, conn, rec, tag) }
	o.OnDisconnect = func() {
		if err := i.unhold(names.conn); err != nil {
			i.report("forgetting the daemon of "+rec.Path, err)
		}
	}
	if b.server, err = devnode.New(o); err != nil {
		return nil, errors.Join(fmt.Errorf("bind %s: %w", rec.Path, err), dir.Close())
	}
	if err := i.pushBind(names, b); err != nil {
		return nil, errors.Join(err, b.server.Close(), dir.Close())
	}
	for n, object := range dir.Objects() {
		i.fillers.Store(object.ID(), b.server)
		if err := i.front.Attach(object, sys.ProcPath(int(object.File().Fd())), b.server.IsDaemon); err != nil {
			i.fillers.Delete(object.ID())
			return nil, errors.Join(err, i.detachObjects(dir.Objects()[:n]), b.server.Close(), dir.Close())
		}
	}
	i.bound[rec.Path] = b
	go func() {
		defer close(b.ended)
		if err := b.server.Serve(context.Background()); err != nil && !errors.Is(err, net.ErrClosed) {
			i.report("serving the devnode "+rec.Devnode, err)
		}
	}()
	return b, nil
}

// daemonBound has the keeper hold the daemon's connection, which then outlives us.
func (i *Instance) daemonBound(name string, conn *sys.FD, rec record, tag string) {
	i.log.Info("daemon bound", "dir", rec.Path, "tag", tag)
	rec.Tag = tag
	held, err := conn.Dup() // conn is closed when this returns
	if err == nil {
		err = errors.Join(i.hold(name, held), i.records.put(rec))
	}
	if err != nil {
		i.report("handing the daemon's connection to the keeper", err)
	}
}

func (i *Instance) pushBind(names bindNames, b *boundDir) error {
	listener, err := b.server.ListenerFD()
	if err != nil {
		return err
	}
	presence, err := b.dir.Record().Dup()
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	return errors.Join(i.hold(names.presence, presence), i.hold(names.listener, listener))
}

func (i *Instance) detachObjects(objects []*devnode.Object) error {
	var errs []error
	for _, o := range objects {
		errs = append(errs, i.front.Detach(o.ID()))
		i.fillers.Delete(o.ID())
	}
	return errors.Join(errs...)
}

// unbind ends the serving of a directory, unless somebody has one of its incomplete
// files open. They are ordinary sparse files from then on.
func (i *Instance) unbind(path string) error {
	i.mu.Lock()
	b := i.bound[path]
	i.mu.Unlock()
	var users []string
	var err error
	gone := b == nil
	if !gone {
		users, gone, err = i.boundUsers(b)
	}
	if gone {
		return refuse(control.ExitError, "`lacuna status` lists what is bound", "%s is not bound", path)
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	if len(users) > 0 {
		return refuse(control.ExitInUse, "let them close it, then detach again: without the mark its holes would read as zeros",
			"detach %s: in use: %s", path, some(users))
	}
	return i.unbindOnce(b)
}

// unbindOnce is unbindLocked, unless another command was faster.
func (i *Instance) unbindOnce(b *boundDir) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.bound[b.record.Path] != b {
		return nil
	}
	return i.unbindLocked(b)
}

// unbindLocked flushes what is pending before the marks go, so that no sleeping
// reader is let through to a hole.
func (i *Instance) unbindLocked(b *boundDir) error {
	delete(i.bound, b.record.Path)
	err := b.server.Close()
	<-b.ended
	for _, o := range b.dir.Objects() {
		i.table.Flush(o.ID(), fmt.Errorf("read %s: %w", o.ID(), ondemand.ErrFlushed))
	}
	err = errors.Join(err, i.detachObjects(b.dir.Objects()), i.unholdBind(b.record.Path))
	return errors.Join(err, b.dir.Close(), i.records.remove(b.record.Path))
}

// unholdBind has the keeper let go of all that it holds for a directory.
func (i *Instance) unholdBind(dir string) error {
	names := namesOf(dir)
	return errors.Join(i.unhold(names.presence), i.unhold(names.listener), i.unhold(names.conn))
}

// rebindLocked goes on with a directory that the worker before had bound.
func (i *Instance) rebindLocked(rec record) error {
	names := namesOf(rec.Path)
	for _, name := range []string{names.presence, names.listener, names.conn} {
		if n := len(i.held[name]); n > 1 {
			return fmt.Errorf("go on with %s: the keeper has %d descriptors called %s", rec.Path, n, name)
		}
	}
	o := devnode.Options{Path: rec.Devnode, ConnTag: rec.Tag}
	if fds := i.held[names.listener]; len(fds) > 0 {
		l, err := fromHeld(fds[0], net.FileListener)
		if err != nil {
			return fmt.Errorf("take over the devnode %s: %w", rec.Devnode, err)
		}
		o.Listener, _ = l.(*net.UnixListener)
	}
	if fds := i.held[names.conn]; len(fds) > 0 {
		c, err := fromHeld(fds[0], net.FileConn)
		if err != nil {
			return fmt.Errorf("take over the connection of %s: %w", rec.Devnode, err)
		}
		o.Conn, _ = c.(*net.UnixConn)
	}
	var presence *sys.FD
	if fds := i.held[names.presence]; len(fds) > 0 {
		var err error
		if presence, err = fds[0].Dup(); err != nil {
			return err
		}
	}
	_, err := i.bindLocked(rec, o, presence)
	return err
}

// fromHeld makes a network object of a held descriptor, which stays as it is.
func fromHeld[T any](fd *sys.FD, open func(*os.File) (T, error)) (T, error) {
	var none T
	dup, err := fd.Dup()
	if err != nil {
		return none, err
	}
	f := dup.File("held")
	v, err := open(f)
	return v, errors.Join(err, f.Close())
}
