package config

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
)

// maxSecret bounds secrets of other systems, in bytes.
const maxSecret = 4096

// secret reads the file of a secret. An empty path means no secret.
func (c *checker) secret(key, path string) string {
	if path == "" {
		return ""
	}
	text, err := ReadSecret(c.path(path))
	if err != nil {
		c.report(key, "%v", err)
	}
	return text
}

// ReadSecret reads a file with one secret, and removes the space around the secret.
func ReadSecret(path string) (string, error) {
	text, err := os.ReadFile(path)
	secret := strings.TrimSpace(string(text))
	switch {
	case err != nil:
		return "", fmt.Errorf("reading a secret: %w", err)
	case secret == "" || len(secret) > maxSecret:
		return "", fmt.Errorf("reading a secret: %s is empty or longer than %d bytes", path, maxSecret)
	}
	return secret, nil
}

// roots reads a file of certificate authorities. An empty path means those of the system.
func (c *checker) roots(key, path string) *x509.CertPool {
	if path == "" {
		return nil
	}
	pool, err := ReadRoots(c.path(path))
	if err != nil {
		c.report(key, "%v", err)
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
		return nil, fmt.Errorf("reading authorities: no PEM certificate in %s", path)
	}
	return pool, nil
}

// ReadToken reads a token file. Call it for each use, because another program renews the
// token.
func ReadToken(path string) (string, error) {
	const longest = 16 << 10
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the token file: %w", err)
	}
	if len(text) > longest {
		return "", fmt.Errorf("reading the token file: %s is longer than %d bytes", path, longest)
	}
	return strings.TrimSpace(string(text)), nil
}
