package main

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

// AWS SDKs run a credential_process as often as they like: botocore does so for every
// call while less than 15 minutes are left. So a credential is kept between runs, in a
// file that only its caller can open: the file is sealed with a key derived from the
// proof by which the caller obtained the credential, which is never stored with it.
// Anyone who has that proof could request the credential anyway. A rotated proof opens
// no older file.

// A kept is the place of a credential between runs. It is locked, so that of several
// processes one requests the credential and the others get the same.
type kept struct {
	file  *os.File
	proof []byte
	id    string
}

// A keptFile is the content of the file. The lease is readable, so that "broker return"
// finds it.
type keptFile struct {
	Lease   string    `json:"lease"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	Salt    []byte    `json:"salt"`
	Sealed  []byte    `json:"sealed"`
}

const (
	maxKept     = 64 << 10 // bytes
	keptSalt    = 32       // bytes
	keptPattern = "aws-*.json"

	// refreshMargin is the remaining time below which a new credential is requested:
	// that below which botocore asks for one. It is at most a third of the lifetime.
	refreshMargin = 15 * time.Minute

	// lockWait bounds the wait for another process, in addition to its wait for
	// approval.
	lockWait  = time.Minute
	lockPause = 50 * time.Millisecond
)

// keptDir returns the folder of kept credentials. A folder in the run-time directory is
// in memory and ends with the user's session.
func (a *app) keptDir() (string, error) {
	base, err := a.userDir(".cache", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME")
	if err != nil {
		return "", err
	}
	return filepath.Join(base, "access-broker", "credentials"), nil
}

// openDir creates the folder, which no other user may enter.
func openDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err == nil && (!info.IsDir() || info.Mode().Perm()&0o077 != 0 || !ownedByUs(info)) {
		err = fmt.Errorf("%s must be a folder of yours that no other user can enter", dir)
	}
	return err
}

func ownedByUs(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Getuid()
}

// keep returns the locked place for the credential of an ask.
func (a *app) keep(ctx context.Context, cfg clientConfig, t *tls.Config, ask api.Ask, wait time.Duration) (*kept, error) {
	dir, err := a.keptDir()
	if err == nil {
		err = openDir(dir)
	}
	if err != nil {
		return nil, err
	}
	caller, proof, err := cfg.proof(t)
	if err != nil {
		return nil, err
	}
	// Everything that the broker would record differently makes another credential.
	ask.Scopes = slices.Sorted(slices.Values(ask.Scopes))
	what, err := json.Marshal(struct {
		Server, Broker, Caller string
		Ask                    api.Ask
	}{cfg.server, cfg.brokerID, caller, ask})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(what)
	k := &kept{proof: proof, id: hex.EncodeToString(sum[:])}
	ctx, cancel := context.WithTimeout(ctx, lockWait+wait)
	defer cancel()
	return k, k.lock(ctx, filepath.Join(dir, "aws-"+k.id[:32]+".json"))
}

// proof returns who the caller is, and the secret part of what proves it.
func (c clientConfig) proof(t *tls.Config) (caller string, secret []byte, err error) {
	switch {
	case c.token != "":
		return c.caller, []byte(c.token), nil
	case c.proofs != nil:
		secret, err := c.proofs.secret()
		return c.proofs.name, secret, err
	case t.GetClientCertificate == nil:
		return "", nil, errors.New("the caller has no proof of identity")
	}
	cert, err := t.GetClientCertificate(&tls.CertificateRequestInfo{Version: tls.VersionTLS13})
	if err != nil {
		return "", nil, err
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil || len(leaf.URIs) == 0 {
		return "", nil, errors.New("the certificate is not an SVID")
	}
	secret, err = x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	return leaf.URIs[0].String(), secret, err
}

// lock opens and locks the file. Another process may remove the file before the lock is
// ours, so lock looks again.
func (k *kept) lock(ctx context.Context, path string) error {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		err = flock(ctx, f)
		var info os.FileInfo
		if err == nil {
			info, err = f.Stat()
		}
		if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || !ownedByUs(info)) {
			err = fmt.Errorf("%s must be a file of yours that no other user can read: remove it", path)
		}
		if err != nil {
			_ = f.Close()
			return err
		}
		if now, err := os.Lstat(path); err == nil && os.SameFile(info, now) {
			k.file = f
			return nil
		}
		_ = f.Close()
	}
}

// flock locks a file before ctx ends.
func flock(ctx context.Context, f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil || !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("another process has been requesting the same credential: %w", ctx.Err())
		case <-time.After(lockPause):
		}
	}
}

// unlock lets other processes use the credential.
func (k *kept) unlock() { _ = k.file.Close() }

// aead returns the cipher of a file. Its key is used for one file only. HKDF pads a short
// salt with zeros (RFC 5869, section 2.2), so another length could stand for the same salt.
func (k *kept) aead(salt []byte) (cipher.AEAD, error) {
	if len(salt) != keptSalt {
		return nil, fmt.Errorf("the salt has %d bytes, not %d", len(salt), keptSalt)
	}
	return broker.CipherFrom(k.proof, salt, "accessbroker/kept/v1\n"+k.id)
}

// bound is what the seal authenticates besides the credential.
func (f *keptFile) bound() []byte {
	return []byte(f.Lease + "\n" + f.Issued.UTC().Format(time.RFC3339Nano) + "\n" + f.Expires.UTC().Format(time.RFC3339Nano))
}

// load returns the kept credential; nil if there is none, it ends soon, or it was
// obtained with another proof.
func (k *kept) load(now time.Time) *api.Credential {
	f, err := readKept(k.file)
	if err != nil || !f.lasts(now) {
		return nil
	}
	aead, err := k.aead(f.Salt)
	if err != nil {
		return nil
	}
	text, err := aead.Open(nil, nil, f.Sealed, f.bound())
	if err != nil {
		return nil
	}
	var c api.Credential
	if json.Unmarshal(text, &c) != nil || c.Lease != f.Lease || !c.ExpiresAt.Equal(f.Expires) {
		return nil
	}
	return &c
}

// lasts reports whether enough time is left.
func (f *keptFile) lasts(now time.Time) bool {
	margin := min(refreshMargin, f.Expires.Sub(f.Issued)/3)
	return f.Expires.Sub(now) > margin && !now.Before(f.Issued.Add(-time.Minute))
}

// readKept reads a file.
func readKept(file io.ReadSeeker) (*keptFile, error) {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, maxKept))
	if err != nil {
		return nil, err
	}
	f := &keptFile{}
	return f, json.Unmarshal(text, f)
}

// store keeps a credential.
func (k *kept) store(c *api.Credential, now time.Time) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f := keptFile{Lease: c.Lease, Issued: now.UTC().Round(0), Expires: c.ExpiresAt.UTC(), Salt: make([]byte, keptSalt)}
	_, _ = rand.Read(f.Salt) // never fails
	aead, err := k.aead(f.Salt)
	if err != nil {
		return err
	}
	f.Sealed = aead.Seal(nil, nil, text, f.bound())
	if text, err = json.Marshal(f); err != nil {
		return err
	}
	// A file that a crash leaves half-written opens for no one.
	if err := k.file.Truncate(0); err != nil {
		return err
	}
	_, err = k.file.WriteAt(text, 0)
	return err
}

// forgetKept removes the kept credentials that forget selects. It is no error if one
// can't be removed: each use of one verifies its lease.
func (a *app) forgetKept(forget func(*keptFile) bool) {
	dir, err := a.keptDir()
	if err != nil {
		return
	}
	paths, _ := filepath.Glob(filepath.Join(dir, keptPattern)) // the pattern is valid
	for _, path := range paths {
		file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if f, err := readKept(file); err == nil && forget(f) {
			_ = os.Remove(path)
		}
		_ = file.Close()
	}
}
