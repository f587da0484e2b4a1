package audit

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// A Checkpoint describes the state of a log at one time (C2SP tlog-checkpoint).
type Checkpoint struct {
	Origin string // name of the log and of its key
	Size   int64  // number of records
	Root   Digest // of the tree over them
}

// String returns the text that is signed: origin, size and root, one per line.
func (c Checkpoint) String() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// parseCheckpoint parses the text of a checkpoint. It ignores extension lines, as
// the specification requires.
func parseCheckpoint(text string) (Checkpoint, error) {
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 || lines[0] == "" {
		return Checkpoint{}, errors.New("a checkpoint needs three lines: origin, size and root")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return Checkpoint{}, fmt.Errorf("the checkpoint's size %q is not a decimal number", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(Digest{}) || base64.StdEncoding.EncodeToString(root) != lines[2] {
		return Checkpoint{}, errors.New("the checkpoint's root is not the base64 of 32 bytes")
	}
	return Checkpoint{lines[0], size, Digest(root)}, nil
}

// NewOrigin returns a name for a new log: the host, "/log/" and eight random
// characters, so that two logs never share a name.
func NewOrigin(host string) string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never returns an error
	return host + "/log/" + strings.ToLower(base32.HexEncoding.EncodeToString(b[:]))
}

// A Signer signs the checkpoints of one log. It is safe for concurrent use.
type Signer struct{ signer note.Signer }

// NewLogKey creates an Ed25519 key for the log with this origin. secret is the
// input of NewSigner and must be stored sealed. public is for verifiers. Both use
// the encoding of signed notes.
func NewLogKey(origin string) (secret, public string, err error) {
	secret, public, err = note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return "", "", fmt.Errorf("creating the log's key: %w", err)
	}
	if _, err := NewSigner(secret); err != nil { // fails for an origin with a space or a plus sign
		return "", "", err
	}
	return secret, public, nil
}

// NewSigner returns the signer for a secret from NewLogKey. Its errors do not
// contain the secret.
func NewSigner(secret string) (*Signer, error) {
	s, err := note.NewSigner(secret)
	if err != nil {
		return nil, errors.New("reading the log's key: it is not a signed-note key, or its origin has a space or a plus sign")
	}
	return &Signer{s}, nil
}

// Origin returns the origin of the log that the signer signs for.
func (s *Signer) Origin() string { return s.signer.Name() }

// Sign returns the checkpoint as a signed note. It returns an error for a
// checkpoint of another log.
func (s *Signer) Sign(c Checkpoint) ([]byte, error) {
	if c.Origin != s.Origin() {
		return nil, fmt.Errorf("signing a checkpoint: its origin is %q, the key's origin is %q", c.Origin, s.Origin())
	}
	signed, err := note.Sign(&note.Note{Text: c.String()}, s.signer)
	if err != nil {
		return nil, fmt.Errorf("signing a checkpoint: %w", err)
	}
	return signed, nil
}

// CheckKey returns an error if a text is not the public key of any log.
func CheckKey(public string) error {
	if _, err := note.NewVerifier(public); err != nil {
		return errors.New("not the public key of a log; such a key looks like broker.acme.test/log/1a2b3c4d+0011aabb+AQ…")
	}
	return nil
}

// CheckNote returns an error if a text is not a signed checkpoint. It accepts a
// checkpoint of any log and does not verify the signature.
func CheckNote(signed []byte) error {
	var unverified *note.UnverifiedNoteError
	if _, err := note.Open(signed, note.VerifierList()); !errors.As(err, &unverified) {
		return errors.New("not a signed checkpoint, such as /log/checkpoint returns")
	}
	_, err := parseCheckpoint(unverified.Note.Text)
	return err
}

// Covered reports whether a checkpoint is of the same log as another one, and covers no more
// records. It verifies no signature.
func Covered(signed, by []byte) bool {
	first, second := unverified(signed), unverified(by)
	return first.Origin != "" && first.Origin == second.Origin && first.Size <= second.Size
}

func unverified(signed []byte) (c Checkpoint) {
	var u *note.UnverifiedNoteError
	if _, err := note.Open(signed, note.VerifierList()); errors.As(err, &u) {
		c, _ = parseCheckpoint(u.Note.Text)
	}
	return c
}

// OpenCheckpoint verifies a signed note with the log's public key and returns its
// checkpoint. A checkpoint of another log is an error.
func OpenCheckpoint(signed []byte, public string) (Checkpoint, error) {
	verifier, err := note.NewVerifier(public)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("reading the log's public key: %w", err)
	}
	n, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("opening a checkpoint with the key of %s: %w", verifier.Name(), err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("opening a checkpoint: %w", err)
	}
	if c.Origin != verifier.Name() {
		return Checkpoint{}, fmt.Errorf("opening a checkpoint: its origin is %q, the key's origin is %q", c.Origin, verifier.Name())
	}
	return c, nil
}
