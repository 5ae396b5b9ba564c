//! `tercet enroll`, `identify`, `list`, `rename` and `remove`, as a user runs them.

use crate::program::{stderr, tercet};
use crate::verification::{json, refused, stdout, world};
use serde_json::Value;
use std::path::PathBuf;

/// A gallery of the world's signers but the last, made once for a test.
fn enrolled(dir: &tempfile::TempDir) -> String {
    let gallery = dir.path().join("people.gallery").to_str().unwrap().to_owned();
    let text = stdout(&["enroll", &gallery, &world().genuine, "--model", &world().run, "--device", "cpu"]);
    assert_eq!(text, format!("16 new samples; 16 samples of 4 people in {gallery}\n"));
    gallery
}

#[test]
fn people_are_enrolled_and_identified() {
    let (dir, world) = (tempfile::tempdir().unwrap(), world());
    let gallery = enrolled(&dir);
    let model = ["--model", &world.run, "--device", "cpu"];
    let again = tercet(&[&["enroll", &gallery, &world.genuine][..], &model].concat());
    assert!(stderr(&again).contains("16 pictures were enrolled already"), "{}", stderr(&again));

    let image = world.image(2, 1);
    let answers = json(&[&["identify", &gallery, &image, "--top", "2"][..], &model].concat());
    let answer = &answers[0];
    let person =
        json(&[&["identify", &gallery, &image, "--threshold", "1e-6"][..], &model].concat())[0]["person"].clone();
    assert_eq!((&answer["image"], &person), (&Value::from(image.clone()), &"generated-0002".into()));
    let nearest = answer["nearest"].as_array().unwrap();
    assert_eq!((nearest.len(), &nearest[0]["name"]), (2, &Value::from("generated-0002")));
    // Of another batch a picture's embedding is rounded in another way.
    assert!(nearest[0]["distance"].as_f64().unwrap() < 1e-6 && nearest[0]["sample"] == image.as_str(), "{answer}");
    assert!(nearest[1]["distance"].as_f64() >= nearest[0]["distance"].as_f64());

    let origin = answer["threshold_origin"].as_str().unwrap();
    assert!(origin.contains("1 % of strangers find somebody among 4 people, by the nearest"), "{origin}");

    let mean = json(&[&["identify", &gallery, &image, "--by", "mean"][..], &model].concat());
    assert_eq!(mean[0]["nearest"].as_array().unwrap().len(), 4);
    assert!(mean[0]["nearest"][0]["sample"].is_null());

    // Nobody is as near as that, but for the pictures themselves.
    stdout(&["remove", &gallery, "generated-0002", "--sample", &image]);
    let text = stdout(&[&["identify", &gallery, &image, "--threshold", "1e-9"][..], &model].concat());
    assert!(text.contains(&format!("{image}: nobody\n")), "{text}");
    let folder = json(&[&["identify", &gallery, &world.genuine][..], &model].concat());
    assert_eq!(folder.as_array().unwrap().len(), 16);
}

#[test]
fn people_are_listed_renamed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let gallery = enrolled(&dir);
    stdout(&["rename", &gallery, "generated-0001", "Ada Lovelace"]);
    assert_eq!(stdout(&["remove", &gallery, "generated-0003"]), "removed 4 samples and generated-0003\n");
    let people = json(&["list", &gallery]);
    let names: Vec<&str> = people.as_array().unwrap().iter().map(|person| person["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["Ada Lovelace", "generated-0000", "generated-0002"]);
    let text = stdout(&["list", &gallery]);
    assert!(text.contains("     4  Ada Lovelace\n") && text.ends_with("12 samples of 3 people\n"), "{text}");
}

#[test]
fn galleries_are_exported_and_imported() {
    let (dir, world) = (tempfile::tempdir().unwrap(), world());
    let gallery = enrolled(&dir);
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let model = ["--model", &world.run, "--device", "cpu"];
    for form in ["safetensors", "npy"] {
        let (out, copy) = (at(&format!("out.{form}")), at(&format!("{form}.gallery")));
        assert_eq!(stdout(&["export", &gallery, &out]), format!("16 samples of 4 people\n{out}\n"));
        refused(&["export", &gallery, &out], &["OUT", "already there"]);
        let text = stdout(&[&["import", &copy, &out][..], &model].concat());
        assert_eq!(text, format!("16 new samples in {copy}\n"));
        assert_eq!(json(&["list", &copy]), json(&["list", &gallery]));
        let again = tercet(&[&["import", &gallery, &out][..], &model].concat());
        assert!(stderr(&again).contains("16 samples were enrolled already"), "{}", stderr(&again));
        let back = at(&format!("back.{form}"));
        stdout(&["export", &copy, &back]);
        assert_eq!(std::fs::read(&back).unwrap().len(), std::fs::read(&out).unwrap().len());
    }
    assert_eq!(std::fs::read(at("out.npy")).unwrap(), std::fs::read(at("back.npy")).unwrap());
    let lines = std::fs::read_to_string(at("out.npy.csv")).unwrap();
    assert_eq!(lines, std::fs::read_to_string(at("back.npy.csv")).unwrap());
    assert!(lines.starts_with("person,source,picture\ngenerated-0000,"), "{lines}");

    // What `tercet embed` writes is taken too.
    let embedded = at("embedded.safetensors");
    stdout(&[&["embed", &world.genuine, "--out", &embedded][..], &model].concat());
    stdout(&[&["import", &at("of-embed"), &embedded][..], &model].concat());
    assert_eq!(json(&["list", &at("of-embed")]), json(&["list", &gallery]));

    let check = |file: &str, words: &[&str]| {
        refused(&[&["import", &at("new"), file][..], &model].concat(), words);
        assert!(!PathBuf::from(at("new")).exists(), "{file}: nothing was made");
    };
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(at(name), bytes).unwrap();
        at(name)
    };
    check(&at("absent.npy"), &["absent.npy", "No such file"]);
    check(&world.image(0, 0), &["FILE", ".safetensors or .npy"]);
    check(&write("torn.safetensors", b"torn"), &["torn.safetensors"]);
    check(&write("torn.npy", b"torn"), &["torn.npy"]);
    let whole = std::fs::read(at("out.npy")).unwrap();
    let alone = write("alone.npy", &whole);
    check(&alone, &["alone.npy.csv"]);
    write("alone.npy.csv", lines.lines().take(9).collect::<Vec<_>>().join("\n").as_bytes());
    check(&alone, &["16 embeddings, but 8 people"]);
    write("alone.npy.csv", lines.replace("generated-0001", " ").as_bytes());
    check(&alone, &["person \" \": expected a name"]);
    write("alone.npy.csv", lines.as_bytes());
    let mut bad = whole.clone();
    let end = bad.len();
    bad[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    check(&write("alone.npy", &bad), &["NaN or infinity"]);
    bad[end - 4..].copy_from_slice(&9f32.to_le_bytes());
    check(&write("alone.npy", &bad), &["not of length 1"]);
}

#[test]
fn bad_input_is_refused_and_nothing_is_overwritten() {
    let (dir, world) = (tempfile::tempdir().unwrap(), world());
    let gallery = enrolled(&dir);
    let model = ["--model", &world.run, "--device", "cpu"];
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let with_model = |arguments: &[&str]| -> Vec<String> {
        arguments.iter().chain(&model).map(|argument| argument.to_string()).collect()
    };
    let check = |arguments: &[&str], words: &[&str]| {
        let all = with_model(arguments);
        refused(&all.iter().map(String::as_str).collect::<Vec<_>>(), words);
    };
    let (letter, empty) = (at("letter.gallery"), at("empty"));
    std::fs::write(&letter, "Dear Ada, this is a letter and no database at all. Yours truly, Emmy.").unwrap();
    std::fs::create_dir(&empty).unwrap();
    let image = world.image(0, 0);
    check(&["enroll", &letter, &world.genuine], &["letter.gallery"]);
    assert!(std::fs::read_to_string(&letter).unwrap().starts_with("Dear Ada"));
    check(&["enroll", &at("new"), &image], &["--name says whose it is"]);
    check(&["enroll", &at("new"), &image, "--name", " "], &["--name", "expected a name"]);
    check(&["enroll", &at("new"), &empty, "--name", "Ada"], &["no images in", "empty"]);
    check(&["enroll", &at("new"), &at("absent"), "--name", "Ada"], &["no such image or folder"]);
    let torn = at("torn.png");
    std::fs::write(&torn, &std::fs::read(&image).unwrap()[..60]).unwrap();
    check(&["enroll", &at("new"), &torn, "--name", "Ada"], &["torn.png: no readable image"]);
    check(&["enroll", &gallery, &torn, "--name", "Ada"], &["torn.png: no readable image"]);
    assert!(!PathBuf::from(at("new")).exists(), "nothing was made");
    check(&["identify", &at("absent"), &image], &["absent", "no such gallery"]);
    check(&["identify", &gallery, &at("nowhere")], &["no such image or folder"]);
    check(&["identify", &gallery, &image, "--threshold", "-1"], &["--threshold"]);
    refused(&["list", &at("absent")], &["no such gallery"]);
    refused(&["rename", &gallery, "X", "Y"], &["nobody is called \"X\""]);
    refused(&["rename", &gallery, "generated-0000", "generated-0001"], &["is enrolled already"]);
    refused(&["remove", &gallery, "X"], &["nobody is called \"X\""]);

    // A gallery of another model: its pictures were of another size.
    let other = at("other");
    std::fs::create_dir(&other).unwrap();
    for file in ["encoder.safetensors", "model.json"] {
        std::fs::copy(format!("{}/{file}", world.run), format!("{other}/{file}")).unwrap();
    }
    let settings = std::fs::read_to_string(format!("{other}/model.json")).unwrap();
    let changed = settings.replace("\"image_size\": 32", "\"image_size\": 40");
    assert_ne!(settings, changed);
    std::fs::write(format!("{other}/model.json"), changed).unwrap();
    refused(&["identify", &gallery, &image, "--model", &other, "--device", "cpu"], &["of another model (resnet18"]);
    refused(&["enroll", &gallery, &image, "--name", "X", "--model", &other, "--device", "cpu"], &["of another model"]);
    assert_eq!(json(&["list", &gallery]).as_array().unwrap().len(), 4);
}

#[test]
fn the_hardest_triplets_and_pairs_are_mined() {
    let (dir, world) = (tempfile::tempdir().unwrap(), world());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mine = |kind: &str, out: &str| {
        let model = ["--model", &world.run, "--device", "cpu", "--as", kind, "--top", "2", "--out", out];
        stdout(&[&["mine", &world.genuine][..], &model].concat())
    };
    let (triplets, pairs) = (at("triplets.csv"), at("pairs.csv"));
    assert_eq!(mine("triplets", &triplets), format!("32 triplets of 16 images\n{triplets}\n"));
    let lines = std::fs::read_to_string(&triplets).unwrap();
    let mut lines = lines.lines();
    assert_eq!(lines.next(), Some("anchor,positive,negative,distance_positive,distance_negative"));
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let owner = |cell: &str| cell.split_once('/').unwrap().0.to_owned();
        assert!(owner(cells[0]) == owner(cells[1]) && owner(cells[0]) != owner(cells[2]), "{line}");
    }
    assert!(mine("pairs", &pairs).ends_with(&format!("pairs of 16 images\n{pairs}\n")));
    let text = std::fs::read_to_string(&pairs).unwrap();
    let distances: Vec<f64> =
        text.lines().skip(1).map(|line| line.rsplit_once(',').unwrap().1.parse().unwrap()).collect();
    assert!(distances.len() >= 16 && distances.is_sorted());
    refused(
        &["mine", &world.genuine, "--model", &world.run, "--device", "cpu", "--out", &pairs],
        &["--out", "already there"],
    );
    let alone = format!("{}/generated-0000", world.genuine);
    refused(&["mine", &alone, "--model", &world.run, "--device", "cpu", "--out", &at("x.csv")], &["generated-0000"]);
}

#[test]
fn recognition_is_measured() {
    let (dir, world) = (tempfile::tempdir().unwrap(), world());
    let out = dir.path().join("evaluation").to_str().unwrap().to_owned();
    let model = ["--model", &world.run, "--device", "cpu"];
    let measured =
        json(&[&["eval", &world.genuine, "--gallery", "--enrolled", "2", "--out", &out][..], &model].concat());
    let open = &measured["open_set"];
    let counts = ["people", "samples", "mated", "strangers"].map(|key| open[key].as_u64().unwrap());
    assert_eq!(counts, [2, 4, 4, 8]);
    assert!(open["at_threshold"]["fpir"].is_number() && open["cmc"][0][0] == 1);
    assert!(image::open(format!("{out}/open-set.png")).is_ok());
    let report = std::fs::read_to_string(format!("{out}/report.html")).unwrap();
    assert!(report.contains("Recognition among 2 people"));
    for group in ["strangers near to somebody", "people far from their samples"] {
        assert!(report.contains(&format!(": {group}, ")), "{group}");
    }
    let text = stdout(&[&["eval", &world.genuine, "--gallery"][..], &model].concat());
    assert!(text.contains("recognition, 2 people of 2 samples; 6 searches for them and 8 of strangers"), "{text}");
    assert!(text.contains("FNIR at FPIR 0.01"), "{text}");
    refused(
        &[&["eval", &world.genuine, "--gallery", "--enrolled", "4"][..], &model].concat(),
        &["--gallery", "too few"],
    );
}
