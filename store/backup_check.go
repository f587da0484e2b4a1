package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math"
	"os"
	"strings"

	"accessbroker.internal/audit"
)

// VerifyBackup checks a backup: its pages, its rows, its rule files and, with check, its
// log.
func VerifyBackup(ctx context.Context, file string, check func(context.Context, audit.Source) error) (*BackupInfo, error) {
	info, err := checkBackup(ctx, file, check)
	if err != nil {
		return nil, fmt.Errorf("verifying the backup %s: %w", file, err)
	}
	return info, nil
}

func checkBackup(ctx context.Context, path string, check func(context.Context, audit.Source) error) (info *BackupInfo, err error) {
	f, err := OpenSource(ctx, path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err = f.checkContent(ctx); err != nil {
		return nil, err
	}
	if check != nil {
		if err := check(ctx, f); err != nil {
			return nil, fmt.Errorf("the log: %w", err)
		}
	}
	size, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	info.Size = size.Size()
	return info, nil
}

// checkContent checks everything but the log.
func (f *Source) checkContent(ctx context.Context) (*BackupInfo, error) {
	tx, err := f.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback() }()
	var result string
	if err := tx.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&result); err != nil {
		return nil, err
	}
	if result != "ok" {
		return nil, fmt.Errorf("the file is damaged: %s", result)
	}
	written, err := readManifest(ctx, tx)
	if err != nil {
		return nil, err
	}
	found, _, err := describeCopy(ctx, tx)
	if err != nil {
		return nil, err
	}
	if found.Rules, err = checkRules(ctx, tx); err != nil {
		return nil, err
	}
	found.Format, found.Program, found.Taken = written.Format, written.Program, written.Taken
	found.Last, written.Last = audit.Millis(found.Last), audit.Millis(written.Last)
	if found != written {
		return nil, errors.New("the file is damaged: its rows are not those that the backup had when it was written")
	}
	return &found, nil
}

func readManifest(ctx context.Context, tx *sql.Tx) (info BackupInfo, err error) {
	var text []byte
	err = tx.QueryRowContext(ctx, "SELECT content FROM backup_files WHERE name = ?", backupManifest).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) || err != nil && strings.Contains(err.Error(), "no such table") {
		return info, errors.New("it is no backup: it lacks what broker backup adds to a database")
	}
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(text, &info); err != nil {
		return info, fmt.Errorf("reading what the backup has: %w", err)
	}
	if info.Format != backupFormat {
		return info, fmt.Errorf("the backup has format %d, and this program knows %d: use the newer program that wrote it", info.Format, backupFormat)
	}
	return info, nil
}

// checkRules compares each file of the rules with its name, and returns their number.
func checkRules(ctx context.Context, tx *sql.Tx) (n int, err error) {
	err = each(ctx, tx, "SELECT name, content FROM backup_files WHERE name >= ? AND name < ?", []any{backupRules, "rules0"}, func(rows *sql.Rows) error {
		var name string
		var content sql.RawBytes
		if err := rows.Scan(&name, &content); err != nil {
			return err
		}
		n++
		digest := audit.Digest(sha256.Sum256(content))
		if want := strings.TrimPrefix(name, backupRules); want != digest.String() {
			return fmt.Errorf("the file of the rules %s is damaged: its SHA-256 is %s", want, digest)
		}
		return nil
	})
	return n, err
}

// digestTables returns the SHA-256 over all rows of all tables but that of the backup.
func digestTables(ctx context.Context, tx *sql.Tx) (digest audit.Digest, err error) {
	var names []string
	err = each(ctx, tx, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name <> 'backup_files' ORDER BY name", nil, func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		names = append(names, name)
		return err
	})
	if err != nil {
		return digest, err
	}
	h := sha256.New()
	for _, name := range names {
		if err := digestTable(ctx, tx, name, h); err != nil {
			return digest, fmt.Errorf("reading %s: %w", name, err)
		}
	}
	h.Sum(digest[:0])
	return digest, nil
}

// digestTable hashes the rows of a table in the order of its key.
func digestTable(ctx context.Context, tx *sql.Tx, name string, h hash.Hash) error {
	order, err := keyOf(ctx, tx, name)
	if err != nil {
		return err
	}
	var values []any
	var dest []any
	buf := appendText(nil, 'n', []byte(name))
	err = each(ctx, tx, "SELECT * FROM "+quotedName(name)+" ORDER BY "+order, nil, func(rows *sql.Rows) error {
		if dest == nil {
			columns, err := rows.Columns()
			if err != nil {
				return err
			}
			values, dest = make([]any, len(columns)), make([]any, len(columns))
			for i := range values {
				dest[i] = &values[i]
			}
		}
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		for _, v := range values {
			if buf, err = appendValue(buf, v); err != nil {
				return err
			}
		}
		_, _ = h.Write(buf) // never fails
		buf = buf[:0]
		return nil
	})
	_, _ = h.Write(buf)
	return err
}

// keyOf returns the columns of a table's primary key; "rowid" if it has none.
func keyOf(ctx context.Context, tx *sql.Tx, name string) (string, error) {
	var columns []string
	err := each(ctx, tx, "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", []any{name}, func(rows *sql.Rows) error {
		var column string
		err := rows.Scan(&column)
		columns = append(columns, quotedName(column))
		return err
	})
	if len(columns) == 0 {
		return "rowid", err
	}
	return strings.Join(columns, ", "), err
}

func quotedName(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// appendValue appends a value with its type and length, so that no two lists of values have
// the same bytes.
func appendValue(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, 0), nil
	case int64:
		return binary.BigEndian.AppendUint64(append(b, 'i'), uint64(v)), nil
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 'f'), math.Float64bits(v)), nil
	case []byte:
		return appendText(b, 'b', v), nil
	case string:
		return appendText(b, 't', []byte(v)), nil
	}
	return nil, fmt.Errorf("a value has the type %T", v)
}

func appendText(b []byte, kind byte, text []byte) []byte {
	return append(binary.AppendUvarint(append(b, kind), uint64(len(text))), text...)
}
