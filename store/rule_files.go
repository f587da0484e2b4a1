package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"accessbroker.internal/audit"
)

// The files of each revision are kept by their digests, which is what the log records: with
// SQLite in a folder next to the database, with PostgreSQL in a table that all replicas read.
const ruleFileTables = `
CREATE TABLE rule_files (digest BLOB NOT NULL PRIMARY KEY, content BLOB NOT NULL);
`

// keepRulesWithin bounds the writing of a revision's files to PostgreSQL.
const keepRulesWithin = 30 * time.Second

// KeepRules stores the files of a revision. Files that are there already are left alone.
func (s *Store) KeepRules(contents map[string][]byte, digests map[string]audit.Digest) error {
	if s.Shared() {
		ctx, cancel := context.WithTimeout(context.Background(), keepRulesWithin)
		defer cancel()
		return s.keepSharedRules(ctx, contents, digests)
	}
	dir := s.rulesFolder()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating the folder of the log's rules: %w", err)
	}
	for name, digest := range digests {
		path := filepath.Join(dir, digest.String())
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := writeFile(path, contents[name]); err != nil {
			return fmt.Errorf("keeping %s: %w", name, err)
		}
	}
	return nil
}

func (s *Store) rulesFolder() string { return FilePath(s.cfg.URL) + ".rules" }

// keepSharedRules inserts the files that are missing, usually none.
func (s *Store) keepSharedRules(ctx context.Context, contents map[string][]byte, digests map[string]audit.Digest) error {
	missing := map[audit.Digest][]byte{}
	for name, digest := range digests {
		missing[digest] = contents[name]
	}
	err := s.eachRuleFile(ctx, "digest", digests, func(rows *sql.Rows) error {
		var digest []byte
		err := rows.Scan(&digest)
		delete(missing, audit.Digest(digest))
		return err
	})
	if err != nil {
		return unavailable("reading the log's rules", err)
	}
	if len(missing) == 0 {
		return nil
	}
	err = s.exec(ctx, func(ctx context.Context, w *writer) error {
		for digest, content := range missing {
			const query = "INSERT INTO rule_files (digest, content) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING"
			if err := w.exec(ctx, query, digest[:], content); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("keeping the log's rules: %w", err)
	}
	return nil
}

// eachRuleFile calls f with columns of the files in the database that have these digests.
func (s *Store) eachRuleFile(ctx context.Context, columns string, digests map[string]audit.Digest, f func(*sql.Rows) error) error {
	if len(digests) == 0 {
		return nil
	}
	var args []any
	for _, digest := range digests {
		args = append(args, digest[:])
	}
	query := "SELECT " + columns + " FROM rule_files WHERE digest IN (?" + strings.Repeat(", ?", len(args)-1) + ")"
	return each(ctx, s.readers, query, args, f)
}

// keptRules returns the files of a revision that KeepRules stored.
func (s *Store) keptRules(ctx context.Context, digests map[string]audit.Digest) (map[string][]byte, error) {
	byDigest := map[audit.Digest][]byte{}
	if s.Shared() {
		err := s.eachRuleFile(ctx, "digest, content", digests, func(rows *sql.Rows) error {
			var digest, content []byte
			err := rows.Scan(&digest, &content)
			byDigest[audit.Digest(digest)] = content
			return err
		})
		if err != nil {
			return nil, unavailable("reading earlier rules", err)
		}
	}
	files := make(map[string][]byte, len(digests))
	for name, digest := range digests {
		content, ok := byDigest[digest]
		if !ok && !s.Shared() {
			var err error
			content, err = os.ReadFile(filepath.Join(s.rulesFolder(), digest.String()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("reading earlier rules: %w", err)
			}
			ok = err == nil
		}
		if ok {
			files[name] = content
		}
	}
	return files, nil
}
