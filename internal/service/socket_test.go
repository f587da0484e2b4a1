//go:build unix

package service

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// tempPath returns a path that is short enough for a socket.
func tempPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "admin.sock")
}

func listen(t *testing.T, network, path string) io.Closer {
	t.Helper()
	if network == "unixgram" {
		c, err := net.ListenUnixgram(network, &net.UnixAddr{Name: path, Net: network})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	return l
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// A path of the operator's file may be a mistake. Whatever is there stays there.
func TestListenSocketKeepsOtherFiles(t *testing.T) {
	for name, c := range map[string]struct {
		create func(t *testing.T, path string)
		want   string
	}{
		"file":   {func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("a seal key"), 0o600)) }, "in use by a file"},
		"folder": {func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }, "in use by a folder"},
		"pipe":   {func(t *testing.T, path string) { must(t, syscall.Mkfifo(path, 0o600)) }, "not a socket"},
		"dangling link": {func(t *testing.T, path string) { must(t, os.Symlink(path+".target", path)) },
			"in use by a symbolic link"},
		"link to a file": {func(t *testing.T, path string) {
			must(t, os.WriteFile(path+".target", nil, 0o600), os.Symlink(path+".target", path))
		}, "in use by a symbolic link"},
		"link to the socket of an ended process": {func(t *testing.T, path string) {
			must(t, listen(t, "unix", path+".target").Close(), os.Symlink(path+".target", path))
		}, "in use by a symbolic link"},
		"served socket": {func(t *testing.T, path string) {
			l := listen(t, "unix", path)
			t.Cleanup(func() { _ = l.Close() })
		}, "another process serves this socket"},
		"served datagram socket": {func(t *testing.T, path string) {
			c := listen(t, "unixgram", path)
			t.Cleanup(func() { _ = c.Close() })
		}, "whether a process serves it is unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			path := tempPath(t)
			c.create(t, path)
			before, err := os.Lstat(path)
			must(t, err)
			if _, err := ListenSocket(path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one that contains %q", err, c.want)
			}
			after, err := os.Lstat(path)
			if err != nil || !os.SameFile(before, after) {
				t.Errorf("the path changed: %v", err)
			}
		})
	}
}

func TestListenSocketReplacesSocketOfEndedProcess(t *testing.T) {
	path := tempPath(t)
	must(t, listen(t, "unix", path).Close())
	s, err := ListenSocket(path)
	must(t, err)
	info, err := os.Lstat(path)
	must(t, err)
	if got, want := info.Mode(), fs.ModeSocket|0o600; got != want {
		t.Errorf("got mode %v, want %v", got, want)
	}
	must(t, s.Close())
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket remains after Close: %v", err)
	}
}

func TestSocketCloseKeepsAnotherSocket(t *testing.T) {
	path := tempPath(t)
	s, err := ListenSocket(path)
	must(t, err)
	must(t, os.Remove(path))
	other, err := ListenSocket(path)
	must(t, err)
	if restored, err := s.restore(); restored || !errors.Is(err, errReplaced) {
		t.Errorf("restore: got %v, %v, want %v", restored, err, errReplaced)
	}
	must(t, s.Close())
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the other socket is gone: %v", err)
	}
	must(t, c.Close(), other.Close())
}

// An Accept that began before the socket was deleted returns the connections of the
// new one.
func TestDeletedSocketIsCreatedAgain(t *testing.T) {
	path := tempPath(t)
	s, err := ListenSocket(path)
	must(t, err)
	accepted := make(chan error, 1)
	go func() {
		c, err := s.Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	must(t, os.Remove(path))
	if restored, err := s.restore(); !restored || err != nil {
		t.Fatalf("restore: got %v, %v", restored, err)
	}
	c, err := net.Dial("unix", path)
	must(t, err)
	if err := <-accepted; err != nil {
		t.Errorf("Accept: %v", err)
	}
	must(t, c.Close(), s.Close())
	if _, err := s.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: got %v, want %v", err, net.ErrClosed)
	}
	if restored, err := s.restore(); restored || err != nil {
		t.Errorf("restore after Close: got %v, %v", restored, err)
	}
}

// The folder's lock keeps two starts from removing each other's sockets.
func TestOneOfManyStartsGetsTheSocket(t *testing.T) {
	path := tempPath(t)
	must(t, listen(t, "unix", path).Close()) // every start finds it unserved
	const starts = 16
	results := make(chan *Socket, starts)
	for range starts {
		go func() {
			s, err := ListenSocket(path)
			if err != nil {
				s = nil
			}
			results <- s
		}()
	}
	var got []*Socket
	for range starts {
		if s := <-results; s != nil {
			got = append(got, s)
		}
	}
	if len(got) != 1 {
		t.Fatalf("%d starts got the socket, want 1", len(got))
	}
	if restored, err := got[0].restore(); restored || err != nil {
		t.Errorf("the socket is not the one that was created: %v, %v", restored, err)
	}
	must(t, got[0].Close())
}

// A user who may write to the folder replaces the new socket by a link to a file of another
// user. The file keeps its mode and its owner.
func TestLinkInPlaceOfNewSocket(t *testing.T) {
	path, other := tempPath(t), tempPath(t)
	must(t, os.WriteFile(other, nil, 0o644), os.Chmod(other, 0o644))
	before, err := os.Stat(other)
	must(t, err)
	s, err := ListenSocket(path)
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	must(t, os.Remove(path), os.Symlink(other, path))
	uid := os.Geteuid()
	if uid == 0 {
		uid = 65534
	}
	if _, err := restrict(path); !errors.Is(err, errReplaced) {
		t.Errorf("restrict: got %v", err)
	}
	if err := s.Give(uid); !errors.Is(err, errReplaced) {
		t.Errorf("Give: got %v", err)
	}
	after, err := os.Stat(other)
	must(t, err)
	if got, was := after.Sys().(*syscall.Stat_t).Uid, before.Sys().(*syscall.Stat_t).Uid; got != was || after.Mode() != before.Mode() {
		t.Errorf("the other file: owner %d, mode %v; before: %d, %v", got, after.Mode(), was, before.Mode())
	}
}
