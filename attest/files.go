package attest

import (
	"bytes"
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

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
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

// poll reads every file and applies the changes. If a file can't be used, its
// previous content stays in force.
func (s *Source) poll() {
	s.mu.Lock()
	files, certs := slices.Clone(s.files), slices.Clone(s.certs)
	s.mu.Unlock()
	changed := false
	for _, f := range files {
		fresh, err := f.read()
		s.report(f.path, err)
		changed = changed || fresh
	}
	if changed {
		s.report("bundle files", s.applyFiles(files))
	}
	for _, c := range certs {
		s.report(c.certPath, c.read())
	}
}

// openFiles reads every file for the first time. It fails if one is not valid.
func (s *Source) openFiles() error {
	var errs []error
	for name, path := range s.cfg.Bundles {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return fmt.Errorf("configuring attestation: %q is not a trust domain, such as acme.test", name)
		}
		f := &bundleFile{domain: td, path: path}
		_, err = f.read()
		errs = append(errs, err)
		s.files = append(s.files, f)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.applyFiles(s.files)
}

func (s *Source) applyFiles(files []*bundleFile) error {
	return s.change(func(d *bundles) {
		d.x509, d.jwt = nil, nil
		for _, f := range files {
			d.x509 = append(d.x509, f.x509)
			d.jwt = append(d.jwt, f.jwt)
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
	x509   *x509bundle.Bundle
	jwt    *jwtbundle.Bundle
}

// read reads the file and reports whether it has new, valid content.
func (f *bundleFile) read() (fresh bool, err error) {
	content, err := readFile(f.path)
	if err != nil {
		return false, fmt.Errorf("reading the bundle of %s: %w", f.domain, err)
	}
	if sum := sha256.Sum256(content); sum != f.seen {
		f.seen = sum
		f.err = f.parse(content)
		return f.err == nil, f.err
	}
	return false, f.err
}

func (f *bundleFile) parse(content []byte) error {
	x509, jwt, err := parseBundle(f.domain, content)
	if err != nil {
		return fmt.Errorf("reading the bundle of %s from %s: %w", f.domain, f.path, err)
	}
	f.x509, f.jwt = x509, jwt
	return nil
}

// parseBundle parses the SPIFFE bundle format (SPIFFE Trust Domain and Bundle,
// section 4) or PEM certificates.
func parseBundle(td spiffeid.TrustDomain, content []byte) (*x509bundle.Bundle, *jwtbundle.Bundle, error) {
	var x509 *x509bundle.Bundle
	jwt := jwtbundle.New(td)
	if bytes.Contains(content, []byte("-----BEGIN ")) {
		b, err := x509bundle.Parse(td, content)
		if err != nil {
			return nil, nil, err
		}
		x509 = b
	} else {
		b, err := spiffebundle.Parse(td, content)
		if err != nil {
			return nil, nil, err
		}
		x509, jwt = b.X509Bundle(), b.JWTBundle()
	}
	if x509.Empty() && jwt.Empty() {
		return nil, nil, errors.New("it has no authority: export the bundle of the trust domain again")
	}
	for _, c := range x509.X509Authorities() {
		if !c.IsCA {
			return nil, nil, fmt.Errorf("the certificate with serial %x is not a CA certificate: use the bundle of the trust domain, not an SVID", c.SerialNumber)
		}
	}
	return x509, jwt, nil
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
