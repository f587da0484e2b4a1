package config

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
)

// maxSecret is the longest secret that others gave us.
const maxSecret = 4096

// secret reads a file that holds a secret; an empty path is none.
func (c *checker) secret(key, path string) string {
	if path == "" {
		return ""
	}
	text, err := ReadSecret(c.file(path))
	if err != nil {
		c.bad(key, "%v", err)
	}
	return text
}

// ReadSecret reads a file that holds one secret, without the space around it.
func ReadSecret(path string) (string, error) {
	text, err := os.ReadFile(path)
	secret := strings.TrimSpace(string(text))
	switch {
	case err != nil:
		return "", fmt.Errorf("reading a secret: %w", err)
	case secret == "" || len(secret) > maxSecret:
		return "", fmt.Errorf("%s is empty, or too long for a secret", path)
	}
	return secret, nil
}

// roots reads a file of authorities; an empty path means the system's.
func (c *checker) roots(key, path string) *x509.CertPool {
	if path == "" {
		return nil
	}
	pool, err := ReadRoots(c.file(path))
	if err != nil {
		c.bad(key, "%v", err)
	}
	return pool
}

// ReadRoots reads a PEM file of certificate authorities.
func ReadRoots(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("reading authorities: %s holds no PEM certificate", path)
	}
	return pool, nil
}

// ReadToken reads a token file. Call it for each use, because the file is replaced
// whenever the token is renewed.
func ReadToken(path string) (string, error) {
	const longest = 16 << 10
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the token file: %w", err)
	}
	if len(text) > longest {
		return "", fmt.Errorf("reading the token file: %s is too long for a token", path)
	}
	return strings.TrimSpace(string(text)), nil
}
