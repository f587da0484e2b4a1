package config

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"accessbroker.internal/store"
)

// surroundings reports what would stop a start on this machine: files, folders and
// names that the file needs and that are not as it says. Loading a file skips these
// checks, because a start reports the same mistakes where they arise.
func (c *checker) surroundings() {
	c.listenersOfHost()
	// A URL that is not valid was reported, and may have a password.
	switch _, err := store.CheckURL(c.cfg.Store); {
	case err != nil:
	case store.IsPostgres(c.cfg.Store):
		c.storeServer(c.cfg.Store)
	default:
		c.storeFile(c.cfg.Store)
	}
	// By default, the checkpoint is next to the database, and its folder is checked.
	if _, err := os.Stat(c.cfg.CheckpointFile); c.cfg.CheckpointFile != "" && err == nil || c.d.file.Server.Checkpoint != "" {
		c.fileInFolder("server/checkpoint_file", c.cfg.CheckpointFile)
	}
	if c.cfg.AdminSocket != "" {
		c.socketPath("server/admin_socket", c.cfg.AdminSocket)
	}
}

// resolveTimeout bounds all look-ups of one check together.
const resolveTimeout = 5 * time.Second

// listenersOfHost checks the addresses and certificates of the listeners.
func (c *checker) listenersOfHost() {
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	for i, l := range c.cfg.Listeners {
		key := fmt.Sprintf("server/listeners/%d", i)
		if c.d.file.Server.Listen != "" {
			key = "server"
		}
		c.canListen(ctx, key+"/listen", l.Address)
		if l.Cert == "" || l.Key == "" {
			continue
		}
		if err := checkKeyPair(l.Cert, l.Key); err != nil {
			c.report(key+"/tls", "reading the certificate: %v", err)
		}
	}
	if c.cfg.Metrics != "" {
		c.canListen(ctx, "server/metrics", c.cfg.Metrics)
	}
}

// checkKeyPair checks the files of a certificate and its key.
func checkKeyPair(cert, key string) error {
	certText, err1 := os.ReadFile(cert)
	keyText, err2 := os.ReadFile(key)
	if err := cmp.Or(err1, err2); err != nil {
		return err
	}
	_, err := tls.X509KeyPair(certText, keyText)
	switch {
	case err == nil:
		return nil
	case !hasPEM(certText, "CERTIFICATE"):
		return fmt.Errorf("%s has no PEM certificate", cert)
	case !hasPEM(keyText, "PRIVATE KEY"):
		return fmt.Errorf("%s has no PEM private key", key)
	case strings.Contains(err.Error(), "does not match"):
		return fmt.Errorf("the key in %s is not that of the first certificate in %s: write the server's certificate first", key, cert)
	}
	return fmt.Errorf("%s or %s can't be parsed", cert, key)
}

// hasPEM reports whether a text has a PEM block whose type ends so.
func hasPEM(text []byte, suffix string) bool {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return false
		}
		if strings.HasSuffix(block.Type, suffix) {
			return true
		}
		text = rest
	}
}

// canListen reports an address on which this machine can't listen. It tries with a free
// port: the broker may be running, and a check must not hold its port. checker.address
// reports other mistakes in the address.
func (c *checker) canListen(ctx context.Context, key, address string) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	if err == nil {
		_ = l.Close()
		return
	}
	var lookUp *net.DNSError
	var cause syscall.Errno
	switch {
	case errors.As(err, &lookUp) && lookUp.IsNotFound:
		c.report(key, "the host %q has no address: correct the name, or write 0.0.0.0 for all addresses of this machine", host)
	case errors.As(err, &lookUp):
		c.report(key, "the name server does not answer for the host %q: try again, or write an address of this machine", host)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		c.report(key, "%s is not an address of this machine: write one of its addresses, or 0.0.0.0 for all of them", host)
	case errors.Is(err, syscall.EAFNOSUPPORT):
		c.report(key, "this machine has no addresses of the kind of %s: write an IPv4 address, or 0.0.0.0 for all of them", host)
	case errors.As(err, &cause):
		c.report(key, "this machine can't listen on %s: %s", host, cause)
	default:
		c.report(key, "this machine can't listen on %s: %v", host, err)
	}
}

// serverTimeout bounds the look at the server of a database.
const serverTimeout = 15 * time.Second

// storeServer checks that the database can be used, and notes what is weak about it.
func (c *checker) storeServer(url string) {
	ctx, cancel := context.WithTimeout(context.Background(), serverTimeout)
	defer cancel()
	report, err := store.Examine(ctx, url)
	if err != nil {
		c.report("store", "%v", err)
		return
	}
	for _, w := range report.Warnings {
		c.warn("store", "%s", w)
	}
	c.cfg.StoreReport = report
}

// storeFile checks that the database exists, or can be created.
func (c *checker) storeFile(url string) {
	path := store.FilePath(url)
	c.fileInFolder("store", path)
	f, err := os.Open(path)
	if err != nil {
		return // missing, or reported already
	}
	defer func() { _ = f.Close() }()
	start := make([]byte, store.HeaderSize)
	if n, err := io.ReadFull(f, start); n > 0 && !store.IsDatabase(start[:n]) || n > 0 && err != nil {
		c.report("store", "%s is not a database", path)
	}
}

// fileInFolder checks that a path names a file, or a file that can be created.
func (c *checker) fileInFolder(key, path string) {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		c.report(key, "%s is a folder: write the path of a file", path)
		return
	case err == nil && !info.Mode().IsRegular():
		c.report(key, "%s is not a regular file", path)
		return
	case err == nil:
		return
	case !errors.Is(err, fs.ErrNotExist):
		c.report(key, "%v", err)
		return
	}
	if dir, err := os.Stat(filepath.Dir(path)); err != nil || !dir.IsDir() {
		c.report(key, "there is no folder %s: create it", filepath.Dir(path))
	}
}

// socketPath checks that a socket can be created at a path.
func (c *checker) socketPath(key, path string) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		c.report(key, "%v", err)
	case info.Mode().Type() != fs.ModeSocket:
		c.report(key, "%s exists and is not a socket: write a path that does not exist", path)
	}
}

// maxSocketPath is the longest path of a Unix socket, in bytes (unix(7)).
const maxSocketPath = 107

// socketLength checks a path, or a URL such as unix:///run/agent.sock.
func (c *checker) socketLength(key, path string) {
	if rest, ok := strings.CutPrefix(path, "unix:"); ok {
		path = "/" + strings.TrimLeft(rest, "/")
	}
	if len(path) > maxSocketPath {
		c.report(key, "the path of a socket has at most %d bytes, and this one has %d", maxSocketPath, len(path))
	}
}
