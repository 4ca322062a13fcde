// Command go fills the files of a bound directory from a directory of full files.
//
// usage: go run ./examples/go SOCKET DIR SOURCEDIR
//
// Start it beside `lacuna bind DIR --devnode SOCKET`. It prints `ready` once
// reads of DIR may begin, and runs until it is killed or the devnode goes away.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/lacunafs/lacuna/devnode"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: go SOCKET DIR SOURCEDIR")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(socket, dir, sourceDir string) error {
	c, err := devnode.Dial(socket)
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err == nil {
		err = c.Bind(dir, "go")
	}
	if err != nil {
		return errors.Join(err, c.Close())
	}
	fmt.Println("ready")
	for {
		req, err := c.Next(context.Background())
		if err != nil {
			return errors.Join(fmt.Errorf("wait for a request: %w", err), c.Close())
		}
		go answer(c, req, sourceDir)
	}
}

// answer fills one request. A refusal means that nobody waits for it any more.
func answer(c *devnode.Client, req devnode.Request, sourceDir string) {
	err := fill(c, req, sourceDir)
	if err == nil {
		err = c.Done(req.ID)
	} else {
		err = errors.Join(err, c.Fail(req.ID, syscall.EIO))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s %d+%d: %v\n", req.Path, req.Off, req.Len, err)
	}
}

func fill(c *devnode.Client, req devnode.Request, sourceDir string) error {
	source, err := os.Open(filepath.Join(sourceDir, req.Path))
	if err != nil {
		return err
	}
	target, err := c.File(req.ID)
	if err != nil {
		return errors.Join(err, source.Close())
	}
	_, err = io.CopyN(io.NewOffsetWriter(target, req.Off), io.NewSectionReader(source, req.Off, req.Len), req.Len)
	return errors.Join(err, source.Close(), target.Close())
}
