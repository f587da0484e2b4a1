package store

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// A copyReader encodes rows for COPY in PostgreSQL's binary format:
// https://www.postgresql.org/docs/current/sql-copy.html
type copyReader struct {
	columns  copyColumns
	next     func() ([]any, error) // nil: no more rows
	progress func(done int64)

	buffer  []byte
	started bool
	ended   bool
	digest  rowDigest
	err     error // why it stopped
}

const (
	copyHeader  = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	copyTrailer = "\xff\xff"
	copyBuffer  = 256 << 10
	copyEvery   = 10_000 // rows between calls of progress
)

// Read implements io.Reader.
func (r *copyReader) Read(p []byte) (int, error) {
	for len(r.buffer) == 0 {
		if r.ended {
			return 0, io.EOF
		}
		if err := r.fill(); err != nil {
			r.err = err
			return 0, err
		}
	}
	n := copy(p, r.buffer)
	r.buffer = r.buffer[n:]
	return n, nil
}

// fill encodes the next rows.
func (r *copyReader) fill() error {
	r.buffer = r.buffer[:0]
	if !r.started {
		r.buffer, r.started = append(r.buffer, copyHeader...), true
	}
	for len(r.buffer) < copyBuffer {
		row, err := r.next()
		if err != nil {
			return err
		}
		if row == nil {
			r.buffer, r.ended = append(r.buffer, copyTrailer...), true
			return nil
		}
		fields, err := r.fields(row)
		if err != nil {
			return fmt.Errorf("row %d: %w", r.digest.rows+1, err)
		}
		r.buffer = binary.BigEndian.AppendUint16(r.buffer, uint16(len(fields)))
		start := len(r.buffer)
		r.buffer = encodeFields(r.buffer, fields)
		r.digest.add(r.buffer[start:])
		if r.digest.rows%copyEvery == 0 {
			r.progress(r.digest.rows)
		}
	}
	return nil
}

// fields converts the values of SQLite, which has types for values and not for columns.
func (r *copyReader) fields(row []any) ([][]byte, error) {
	fields := make([][]byte, len(row))
	for i, value := range row {
		column := r.columns[i]
		switch v := value.(type) {
		case nil:
			continue
		case int64:
			if !column.bytes {
				fields[i] = binary.BigEndian.AppendUint64([]byte{}, uint64(v))
				continue
			}
		case []byte:
			if column.bytes {
				fields[i] = append([]byte{}, v...)
				continue
			}
		case string:
			if column.bytes {
				fields[i] = append([]byte{}, v...)
				continue
			}
		}
		return nil, fmt.Errorf("the column %s has a value of another type (%T)", column.name, value)
	}
	return fields, nil
}

// encodeFields appends the fields as COPY has them: the length, and the bytes. The length of NULL
// is -1.
func encodeFields(b []byte, fields [][]byte) []byte {
	for _, f := range fields {
		if f == nil {
			b = append(b, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

// A rowDigest is a digest of rows in any order: the sum of their digests.
type rowDigest struct {
	rows int64
	sum  [sha256.Size]byte
}

func (d *rowDigest) add(row []byte) {
	d.rows++
	digest := sha256.Sum256(row)
	carry := 0
	for i := len(digest) - 1; i >= 0; i-- {
		carry += int(d.sum[i]) + int(digest[i])
		d.sum[i] = byte(carry)
		carry >>= 8
	}
}
