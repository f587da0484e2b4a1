package attest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxFile is the largest bundle, certificate or key file, in bytes.
const maxFile = 1 << 20

// pollFiles reads all files every PollInterval until ctx ends. Notifications and
// modification times miss changes on some file systems and mounts; reading a few
// kilobytes every few seconds works on all.
func (s *Source) pollFiles(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.PollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.poll()
		}
	}
}

// poll reads every file and applies the changes. If a certificate can't be used, its
// previous content stays in force; if a bundle can't, until it is too old.
func (s *Source) poll() {
	s.mu.Lock()
	files, certs := slices.Clone(s.files), slices.Clone(s.certs)
	s.mu.Unlock()
	var errs []error
	for _, f := range files {
		err := f.read()
		s.report(f.path, err)
		errs = append(errs, err)
	}
	s.report("bundles", s.applyFiles(files, errs, time.Now()))
	for _, c := range certs {
		s.report(c.certPath, c.read())
	}
}

// openFiles reads every file for the first time. It fails if one is not valid.
func (s *Source) openFiles() error {
	var errs []error
	for name, path := range s.cfg.Bundles {
		td, err := trustDomain(name)
		if err != nil {
			return fmt.Errorf("configuring attestation: %w", err)
		}
		f := &bundleFile{domain: td, path: path}
		errs = append(errs, f.read())
		s.files = append(s.files, f)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.applyFiles(s.files, errs, time.Now())
}

// applyFiles applies the bundles of files that were read at now. The errors are those
// of reading each.
func (s *Source) applyFiles(files []*bundleFile, errs []error, now time.Time) error {
	return s.change(now, func() {
		for i, f := range files {
			from := origin{f.path, f.domain}
			if errs[i] != nil {
				s.unconfirmed(from, now)
				continue
			}
			s.deliver(from, f.bundle, now)
		}
	})
}

// A bundleFile is the file with the bundle of one trust domain. Open uses it, and
// then Run alone.
type bundleFile struct {
	domain spiffeid.TrustDomain
	path   string
	seen   [sha256.Size]byte // of the content that was parsed last, valid or not
	err    error             // from parsing it
	bundle *bundle           // the last valid content
}

// read reads the file.
func (f *bundleFile) read() error {
	content, err := readFile(f.path)
	if err != nil {
		return fmt.Errorf("reading the bundle of %s: %w", f.domain, err)
	}
	if sum := sha256.Sum256(content); sum != f.seen {
		f.seen = sum
		f.err = f.parse(content)
	}
	return f.err
}

func (f *bundleFile) parse(content []byte) error {
	b, err := parseBundle(f.domain, content)
	if err != nil {
		return fmt.Errorf("reading the bundle of %s from %s: %w", f.domain, f.path, err)
	}
	f.bundle = b
	return nil
}

// A certFile is the certificate and key of a server, in files.
type certFile struct {
	certPath, keyPath string
	seen              [sha256.Size]byte // used by ServerTLS, and then by Run alone
	err               error             // from parsing them
	cert              atomic.Pointer[tls.Certificate]
}

// read reads the files and stores a new, valid certificate.
func (c *certFile) read() error {
	cert, err := readFile(c.certPath)
	if err != nil {
		return fmt.Errorf("reading the server's certificate: %w", err)
	}
	key, err := readFile(c.keyPath)
	if err != nil {
		return fmt.Errorf("reading the server's key: %w", err)
	}
	sum := sha256.Sum256(slices.Concat(cert, []byte{0}, key))
	if sum == c.seen {
		return c.err
	}
	c.seen = sum
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		// Usually one file was replaced and the other not yet. The next poll finds
		// both.
		c.err = fmt.Errorf("reading the server's certificate from %s and %s: %w", c.certPath, c.keyPath, err)
		return c.err
	}
	c.err = nil
	c.cert.Store(&pair)
	return nil
}

func (c *certFile) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.cert.Load(), nil }

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes: check the path", path, maxFile)
	}
	return content, nil
}
