package control

import "context"

// Mount makes an image appear as a directory.
func (c *Client) Mount(ctx context.Context, q MountRequest) (reply MountReply, err error) {
	err = again(ctx, "mount "+q.Dir, func(n int) (bool, error) {
		if n > 0 { // the one before may have done it
			m, err := c.mounted(ctx, q.Dir)
			if err != nil {
				return false, err
			}
			if m != nil && !m.Leaving {
				reply = MountReply{Digest: m.Digest, Layers: len(m.Layers), Files: m.Files}
				for _, l := range m.Layers {
					reply.Size += l.Size
				}
				return true, nil
			}
		}
		reply, err = call[MountReply](ctx, c, "mount", q)
		return false, err
	})
	return reply, err
}

// Umount undoes a mount.
func (c *Client) Umount(ctx context.Context, q UmountRequest) error {
	return again(ctx, "umount "+q.Dir, func(n int) (bool, error) {
		if n > 0 { // the one before may have done it
			m, err := c.mounted(ctx, q.Dir)
			if err != nil {
				return false, err
			}
			if m == nil || m.Leaving {
				return true, nil
			}
		}
		_, err := call[struct{}](ctx, c, "umount", q)
		return false, err
	})
}

// mounted is what is mounted on dir, or nil.
func (c *Client) mounted(ctx context.Context, dir string) (*Mounted, error) {
	s, err := c.status(ctx)
	if err != nil {
		return nil, err
	}
	for i, m := range s.Mounted {
		if m.Dir == dir {
			return &s.Mounted[i], nil
		}
	}
	return nil, nil
}
